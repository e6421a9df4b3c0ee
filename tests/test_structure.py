"""The shape of the house: import order, no cycles, the public names, the tree of the guide,
versions in step."""

from __future__ import annotations

import ast
import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import safeswitch

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "safeswitch"
ORDER = (
    "core",
    "data",
    "models",
    "statistics",
    "activations",
    "probers",
    "switch",
    "fitting",
    "methods",
    "engines",
    "bench",
    "attacks",
    "analyses",
    "report",
    "bridges",
    "nano",
    "serving",
    "integrations",
    "cli",
)
# methods hand switches to engines and never import one; nothing between them may either.
SHORT_WAYS_IN = {("switch/switch.py", "safeswitch.fitting.fit")}
"""Imports back up, inside a function: ``Switch.fit`` loads the trainers when somebody fits, and not
before."""
MODULES = sorted(p for p in SRC.rglob("*.py") if p.name != "__init__.py" or p.parent != SRC)


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of this package that ``path`` imports when it runs (type-checking blocks left
    out)."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    names = {module_name(p) for p in MODULES}
    return {name for name in found if name in names or name == "safeswitch"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_module_imports_only_from_its_own_folder_or_from_those_above(path: Path) -> None:
    own = path.relative_to(SRC).parts[0]
    if own == "_version.py":
        return
    for name in imports_of(path) - {"safeswitch._version"}:
        assert name != "safeswitch", "import from the module that defines the name"
        folder = name.split(".")[1]
        if (path.relative_to(SRC).as_posix(), name) in SHORT_WAYS_IN:
            continue
        assert ORDER.index(folder) <= ORDER.index(own), f"{own} must not import {folder}"


def test_no_import_is_relative_so_that_the_order_sees_them_all() -> None:
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), (
                f"{path}:{node.lineno} imports relatively"
            )


def test_methods_never_import_an_engine() -> None:
    for path in (SRC / "methods").glob("*.py"):
        assert not any(name.startswith("safeswitch.engines") for name in imports_of(path))


def test_there_are_no_import_cycles() -> None:
    graph = {module_name(p): imports_of(p) - {module_name(p)} for p in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done:
            return
        for other in graph.get(name, ()):
            short = any(
                module_name(SRC / path) == name and other == target
                for path, target in SHORT_WAYS_IN
            )
            if not short and not name.startswith(f"{other}."):
                visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_all_lists_exactly_the_public_names_and_each_can_be_imported() -> None:
    assert safeswitch.__all__ == sorted(safeswitch.__all__)
    assert set(safeswitch.__all__) == set(safeswitch._HOMES) | {"__version__"}
    for name in safeswitch.__all__:
        assert getattr(safeswitch, name) is not None


def test_what_runs_loads_nothing_that_trains() -> None:
    code = "import sys, safeswitch; safeswitch.Switch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert len([name for name in loaded if name.split(".")[0] == "safeswitch"]) <= 30
    assert not {"sklearn", "scipy", "transformers", "safeswitch.fitting"} & set(loaded)


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_tree_for_contributors_matches_the_disk() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("<!-- tree -->")[1].split("<!-- /tree -->")[0]
    told = {
        m.group(1).rstrip("/") for m in re.finditer(r"^\s*([\w.-]+/?)\s{2,}", block, re.MULTILINE)
    }
    folders = {p.name for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert told == folders | top_folders()


def top_folders() -> set[str]:
    """Folders of the repository that are neither hidden nor ignored."""
    ignored = [
        line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ]
    names = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    return {
        name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)
    }


def test_the_changelog_knows_the_version() -> None:
    assert f"## {safeswitch.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {safeswitch.__version__}" in citation


EXTRAS = {
    "vllm": ("engines/vllm/", "serving/"),
    "matplotlib": ("bench/", "report/"),
    "datasets": ("data/", "bridges/tasks/"),
    "sqlalchemy": ("serving/",),
    "prometheus_client": ("serving/",),
    "lm_eval": ("bridges/lm_eval",),
    "inspect_ai": ("bridges/inspect", "cli/inspect_registry"),
    "fastapi": ("serving/",),
    "pydantic": ("serving/", "integrations/open_webui"),
    "pydantic_core": ("serving/",),
    "starlette": ("serving/",),
    "uvicorn": ("serving/",),
    "limits": ("serving/",),
    "opentelemetry": ("serving/",),
    "peft": ("methods/", "models/load"),
    "gguf": ("switch/",),
    "jinja2": ("report/",),
    "PIL": ("models/vision",),
    "openai": ("engines/chat_server", "engines/remote", "bench/judges/chat_model"),
    "agents": ("integrations/openai_agents",),
    "langchain_core": ("integrations/langchain",),
}
"""Optional packages, and the only folders that may import each."""


def test_the_package_declares_what_it_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[<>=\[]", d)[0].replace("-", "_") for d in requirements}

    always = names(project["dependencies"]) - {"scikit_learn", "pyyaml"} | {"sklearn", "yaml"}
    extras = {name for extra in project["optional-dependencies"].values() for name in names(extra)}
    imported = {"opentelemetry_api": "opentelemetry", "pillow": "PIL", "openai_agents": "agents"}
    extras = {imported.get(name, name) for name in extras}
    stdlib = __import__("sys").stdlib_module_names
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            roots = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                roots = [node.module]
            elif isinstance(node, ast.Import):
                roots = [alias.name for alias in node.names]
            for root in {r.split(".")[0] for r in roots} - stdlib - always - {"safeswitch"}:
                assert root in extras, f"{path} imports {root}, which is not declared"
                assert any(folder in path.as_posix() for folder in EXTRAS[root]), (
                    f"{path} imports the optional {root}"
                )


FAKE_PYTHON = """#!/bin/sh
for word; do printf '<%s>' "$word"; done >> "{log}"
echo >> "{log}"
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is absent")
def test_make_installs_the_torch_asked_for_and_again_when_another_is_asked_for(
    tmp_path: Path,
) -> None:
    log, python, venv = tmp_path / "log", tmp_path / "python", tmp_path / "venv"
    python.write_text(FAKE_PYTHON.format(log=log))
    python.chmod(0o755)

    def pip(torch: str) -> list[str]:
        log.write_text("")
        given = [f"TORCH={torch}", f"PYTHON={python}", f"VENV={venv}"]
        subprocess.run(
            ["make", "--silent", "-C", ROOT, *given, f"{venv}/.dev"],
            check=True,
            capture_output=True,
        )
        return [
            line.removeprefix("<-m><pip>")
            for line in log.read_text().splitlines()
            if "<torch" in line
        ]

    build = "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
    first = "<install><--quiet><torch==2.13.0><--index-url><https://download.pytorch.org/whl/cpu>"
    assert pip(build) == [first]
    assert pip(build) == []
    assert pip("torch>=2.6") == [
        "<uninstall><--quiet><--yes><torch>",
        "<install><--quiet><torch>=2.6>",
    ]
    assert pip(build) == ["<uninstall><--quiet><--yes><torch>", first]
