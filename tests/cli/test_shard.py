"""Parts of a run on the command line: two processes, one run folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.log import RunLog
from safeswitch.bench.shard import Shard

COMMAND = (
    *("eval", "--model", "nano", "--benchmark", "nano_plain_unsafe"),
    *("--limit", "12", "--max-new-tokens", "4", "--batch-size", "2"),
)


@pytest.mark.slow
def test_two_processes_share_a_run_and_nothing_is_generated_twice(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "safeswitch.cli.main", *COMMAND, "--out", str(out)]
    workers = [subprocess.Popen([*command, "--shard", f"{i}/2"]) for i in (1, 2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    parts = [RunLog.open(Shard(i, 2).folder(out)).rows("base", "nano_plain_unsafe") for i in (1, 2)]
    assert sum(map(len, parts)) == 12
    assert min(map(len, parts)) > 0

    def broken(*_: Any, **__: Any) -> None:
        raise AssertionError("generated twice")

    monkeypatch.setattr(
        "safeswitch.engines.transformers.engine.TransformersEngine.generate", broken
    )
    code, _, error = call(*COMMAND, "--out", out)
    assert code == 0, error
    whole = RunLog.open(out).rows("base", "nano_plain_unsafe")
    replies = {row.example.id: row.reply for part in parts for row in part}
    assert {row.example.id: row.reply for row in whole} == replies
    assert all("nano" in row.judgements for row in whole)
    assert (out / "table.md").is_file()


def test_a_part_does_not_fit(call: Any, tmp_path: Path) -> None:
    command = ("compare", "--model", "nano", "--methods", "base,scans", "--shard", "1/2")
    code, _, error = call(*command, "--out", tmp_path / "run")
    assert code == 2
    assert "method 'scans' has to be fitted" in " ".join(error.split())
