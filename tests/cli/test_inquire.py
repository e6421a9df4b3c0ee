"""The commands analyse, landscape and report, end to end on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeswitch.analyses.landscape.survey import visage
from safeswitch.bench.log import RunLog
from safeswitch.core.errors import ArtifactError
from safeswitch.report.page import write_report


@pytest.mark.slow
def test_a_run_is_looked_into_surveyed_and_reported(call: Any, tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "run" / "report.html"
    suites = [
        word for name in ("nano_plain_unsafe", "nano_lookalike") for word in ("--benchmark", name)
    ]
    given = ("--model", "nano", "--switch", "nano")
    assert (
        call(
            "compare", *given, "--methods", "base,safeswitch", *suites, "--limit", 10, "--out", run
        )[0]
        == 0
    )
    bare = page.read_text(encoding="utf-8")
    assert "States before and after" not in bare
    assert "Safety landscape: unsafe" not in bare

    code, told, err = call("analyse", run, "--model", "nano", "--limit", 20, "--strips", 2)
    assert (code, told.strip()) == (0, str(run / "analyses.json")), err
    found = json.loads((run / "analyses.json").read_text(encoding="utf-8"))
    assert (found["method"], found["requests"], len(found["strips"])) == ("safeswitch", 20, 2)
    assert len(found["projection"]["points"]) == 3 * 20
    log = RunLog.open(run)
    asked = {f"{b}/{row.example.id}" for b in log.benchmarks for row in log.rows("safeswitch", b)}
    assert {point["id"] for point in found["projection"]["points"]} == asked

    tiny = (
        "--limit",
        2,
        "--points",
        3,
        "--directions",
        1,
        "--map-points",
        0,
        "--parts",
        "head",
        "--max-new-tokens",
        8,
    )
    code, told, err = call("landscape", *given, *tiny, "--out", run)
    assert code == 0, err
    (curve,) = json.loads((run / "landscape.json").read_text(encoding="utf-8"))["curves"]
    assert curve["distances"] == [-0.5, 0.0, 0.5]
    score = visage(curve["distances"], [100 * share for share in curve["complied"]])
    assert curve["visage"] == pytest.approx(score)
    assert f"VISAGE head, with the gate, direction 0: {score:.1f}" in told

    code, told, err = call("report", run)
    assert (code, told.strip()) == (0, str(page)), err
    full = page.read_text(encoding="utf-8")
    for title in ("States before and after", "Safety landscape: unsafe", "Scores, conversation 2"):
        assert title in full
    write_report(run)
    assert page.read_text(encoding="utf-8") == full


def test_what_is_no_run_and_what_is_not_given_is_told(call: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        write_report(tmp_path)
    for command, message in (
        (("report", tmp_path), "manifest.json"),
        (("analyse", tmp_path, "--model", "nano"), "manifest.json"),
        (
            ("landscape", "--model", "other", "--switch", "nano", "--out", tmp_path),
            "landscape needs --in",
        ),
        (
            ("landscape", "--model", "nano", "--switch", "nano", "--points", 4, "--out", tmp_path),
            "points must be odd",
        ),
    ):
        code, _, err = call(*command)
        assert (code, message in err.replace("\n", " ")) == (2, True), err
    assert list(tmp_path.iterdir()) == []
