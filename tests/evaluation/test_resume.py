"""A bench run that is killed at random points and gone on with gives the figures of an unbroken one; nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [
    sys.executable, "-m", "safeswitch.cli.main", "compare", "--model", "nano", "--switch", "nano", "--methods",
    "base,safeswitch", "--benchmark", "nano_jailbroken", "--benchmark", "nano_lookalike", "--limit", "20",
    "--batch-size", "4", "--out",
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
    return {name: [rounded(row) for row in table] for name, table in tables.items() if name not in TIMED}


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Scores of the probers differ in the last digits with the rows that share a batch."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def killed(folder: Path, after: int) -> None:
    """Run the command and kill it once ``after`` rows are on disk."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*COMMAND, str(folder)], env=ONE_THREAD, **quiet)
    while process.poll() is None and len(lines(folder, "replies")) < after:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_random_points_it_ends_up_with_the_figures_of_an_unbroken_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*COMMAND, str(whole)], check=True, capture_output=True, env=ONE_THREAD)
    kept: list[str] = []
    for after in sorted(random.Random().sample(range(1, ROWS - 12), 2)):
        killed(broken, after)
        now = lines(broken, "replies")
        assert now[: len(kept)] == kept or set(kept) <= set(now)  # what was there is there as it was
        kept = now
        assert json.loads((broken / "manifest.json").read_text())["finished"] is None
    subprocess.run([*COMMAND, str(broken)], check=True, capture_output=True, env=ONE_THREAD)
    assert set(kept) <= set(lines(broken, "replies"))
    for kind in ("replies", "judgements"):
        assert len(lines(whole, kind)) == len(lines(broken, kind)) == ROWS
    assert figures(broken) == figures(whole)
    assert json.loads((broken / "manifest.json").read_text())["finished"]
    before = {p: p.stat().st_mtime_ns for p in broken.rglob("*.jsonl")}
    again = subprocess.run([*COMMAND, str(broken)], check=True, capture_output=True, env=ONE_THREAD, text=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "harmful compliance" in again.stdout
    other = [*COMMAND[:-1], "--seed", "1", "--out", str(broken)]
    refused = subprocess.run(other, capture_output=True, text=True, env=ONE_THREAD)
    assert refused.returncode == 2
    assert "holds a run with another seed" in refused.stderr
