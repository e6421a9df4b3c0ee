"""The release workflow is pinned, asks for no more than it needs, and runs what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from safeswitch._version import __version__
from tests.test_docs import fault_of

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
SBOM = ROOT / "build" / "sbom" / "safeswitch.cdx.json"


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    return found


def commands() -> list[str]:
    """Lines that the workflow runs."""
    runs = [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]
    return [line for run in runs for line in run.splitlines()]


def test_every_action_is_pinned_by_its_commit_with_the_version_beside_it() -> None:
    used = re.findall(r"uses: (.*)", WORKFLOW.read_text(encoding="utf-8"))
    assert used
    for one in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


def test_a_job_may_do_what_it_needs_and_no_secret_is_named() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["permissions"] == {}
    assert "secrets." not in text
    writes = {
        name: {what for what, kind in job["permissions"].items() if kind == "write"}
        for name, job in jobs().items()
    }
    assert writes == {
        "build": set(),
        "attest": {"id-token", "attestations"},
        "publish": {"id-token"},
    }
    assert jobs()["publish"]["needs"] == "attest"


def test_what_the_workflow_runs_exists() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    made = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert made == ["sbom"]
    assert set(made) <= targets
    asked = [line[line.index("safeswitch ") :] for line in commands() if "/safeswitch " in line]
    assert [fault_of(line) for line in asked] == [None]


def test_the_tag_is_held_against_the_line_that_holds_the_version() -> None:
    (line,) = (line for line in commands() if line.startswith("grep"))
    wanted = re.search(r'"(.*)" (\S+)$', line)
    assert wanted is not None
    looked_for = wanted[1].replace("\\", "").replace("${TAG#v}", __version__)
    assert looked_for in (ROOT / wanted[2]).read_text(encoding="utf-8").splitlines()


def test_the_bill_of_materials_names_what_the_server_needs() -> None:
    if not SBOM.is_file():
        pytest.skip("no bill of materials was made here: make sbom")
    told = json.loads(SBOM.read_text(encoding="utf-8"))
    assert (told["bomFormat"], told["specVersion"][:2]) == ("CycloneDX", "1.")
    have = {canonicalize_name(part["name"]): part for part in told["components"]}
    assert have["safeswitch"]["version"] == __version__
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = project.split("dependencies = [\n")[1].split("\n]")[0]
    for line in re.findall(r'"([^"]+)"', block):
        asked = Requirement(line)
        found = have[canonicalize_name(asked.name)]["version"]
        assert asked.specifier.contains(found, prereleases=True), line
    assert "pytest" not in have, "tools of development are no part of the server"
