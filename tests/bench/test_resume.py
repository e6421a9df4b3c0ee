"""A bench run that is killed at random points and gone on with gives the figures of an unbroken
one; nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeswitch.cli.main import main

ARGUMENTS = [
    "compare",
    "--model",
    "nano",
    "--switch",
    "nano",
    "--methods",
    "base,safeswitch",
    "--benchmark",
    "nano_jailbroken",
    "--benchmark",
    "nano_lookalike",
    "--limit",
    "20",
    "--batch-size",
    "4",
    "--out",
]
ROWS = 2 * 2 * 20
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
TIMED = ("cost",)


def lines(folder: Path, kind: str) -> list[str]:
    """Whole lines of all files of one kind."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / kind).rglob("*.jsonl"))]
    return [line for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]


def figures(folder: Path) -> dict[str, Any]:
    tables = json.loads((folder / "figures.json").read_text(encoding="utf-8"))["tables"]
    return {
        name: [rounded(row) for row in table] for name, table in tables.items() if name not in TIMED
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Scores of the probers differ in the last digits with the rows that share a batch."""
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()
    }


def killed(folder: Path, after: int) -> None:
    """Run the command and kill it once ``after`` rows are on disk."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "safeswitch.cli.main", *ARGUMENTS, str(folder)]
    process = subprocess.Popen(command, env=ONE_THREAD, **quiet)
    while process.poll() is None and len(lines(folder, "replies")) < after:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process; its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["safeswitch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run


@pytest.mark.slow
def test_killed_at_random_points_it_ends_up_with_the_figures_of_an_unbroken_run(
    here: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert here(*ARGUMENTS, whole) == 0
    kept: list[str] = []
    for after in sorted(random.Random().sample(range(1, ROWS - 12), 2)):
        killed(broken, after)
        now = lines(broken, "replies")
        assert set(kept) <= set(now)  # what was there is there as it was
        kept = now
        assert json.loads((broken / "manifest.json").read_text())["finished"] is None
    assert here(*ARGUMENTS, broken) == 0
    assert set(kept) <= set(lines(broken, "replies"))
    for kind, count in (("replies", ROWS), ("judgements", 2 * ROWS)):
        assert len(lines(whole, kind)) == len(lines(broken, kind)) == count
    assert figures(broken) == figures(whole)
    assert json.loads((broken / "manifest.json").read_text())["finished"]
    before = {p: p.stat().st_mtime_ns for p in broken.rglob("*.jsonl")}
    assert here(*ARGUMENTS, broken) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    capsys.readouterr()
    assert here(*ARGUMENTS, broken, "--seed", 1) == 2
    assert "holds a run with another seed" in capsys.readouterr().err.replace("\n", " ")
