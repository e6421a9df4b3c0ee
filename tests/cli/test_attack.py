"""The command attack, end to end on the embedded model: what it leaves, and that nothing is
attacked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from safeswitch.attacks.base import Victim
from safeswitch.attacks.gcg import ProberAwareGCG
from safeswitch.bench.log import Logged, RunLog
from safeswitch.core.types import Example

SET = "nano_plain_unsafe"
GIVEN = ("attack", "--model", "nano", "--switch", "nano", "--limit", "3", "--steps", "2")
SEARCHED = Path("attacked") / f"{SET}.gcg-prober.jsonl"
Table = list[dict[str, Any]]


def table(run: Path, name: str) -> Table:
    found: Table = json.loads((run / "figures.json").read_text(encoding="utf-8"))["tables"][name]
    return found


def figure(rows: Table, **wanted: str) -> float:
    (row,) = (row for row in rows if all(row[k] == v for k, v in wanted.items()))
    return float(row["value"])


def complied(row: Logged) -> bool:
    return bool(row.judgements["nano"].complied)


@pytest.mark.slow
def test_attack_leaves_attacked_requests_figures_and_a_section_of_the_report(
    call: Any, tmp_path: Path
) -> None:
    code, told, err = call(*GIVEN, "--attacks", "wrappers,prefill", "--out", tmp_path)
    assert (code, told.strip().endswith(f"written to {tmp_path}")) == (0, True), err
    log = RunLog.open(tmp_path)
    assert log.methods == ("base", "safeswitch")
    assert log.benchmarks == (SET, f"{SET}.wrappers", f"{SET}.prefill")
    assert log.manifest["finished"]
    attacks = table(tmp_path, "attacks")
    for method in log.methods:
        for attack in ("wrappers", "prefill"):
            rows = log.rows(method, f"{SET}.{attack}")
            by_request: dict[str, list[bool]] = {}
            for row in rows:
                by_request.setdefault(row.example.meta["attacked"], []).append(complied(row))
            assert len(by_request) == 3
            place = {"attack": attack, "method": method}
            assert figure(attacks, metric="attack success", **place) == pytest.approx(
                sum(map(any, by_request.values())) / 3
            )
            assert figure(attacks, metric="per form", **place) == pytest.approx(
                sum(map(complied, rows)) / len(rows)
            )
    held = [row.decision for row in log.rows("safeswitch", f"{SET}.wrappers")]
    assert figure(
        attacks, attack="wrappers", method="safeswitch", metric="gate recall"
    ) == pytest.approx(sum(d["fired"] for d in held) / len(held))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Under attack" in page
    assert "No attacks in this run" not in page


def searched(run: Path) -> list[str]:
    """Whole lines of the file of searched suffixes."""
    path = run / SEARCHED
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


@pytest.mark.slow
def test_a_search_that_was_killed_and_then_interrupted_goes_on_with_what_is_left(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (*GIVEN, "--attacks", "gcg-prober", "--methods", "safeswitch", "--out", str(tmp_path))
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "safeswitch.cli.main", *given]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
    while process.poll() is None and not searched(tmp_path):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first = searched(tmp_path)
    assert 1 <= len(first) < 3

    made: list[str] = []
    search = ProberAwareGCG.attack

    def watched(self: ProberAwareGCG, example: Example, victim: Victim) -> list[Example]:
        if len(made) == stop_after:
            raise KeyboardInterrupt
        made.append(example.id)
        return search(self, example, victim)

    monkeypatch.setattr(ProberAwareGCG, "attack", watched)
    stop_after = 0
    code, _, err = call(*given)
    assert (code, "the run folder keeps what is done" in err.replace("\n", " ")) == (130, True)
    assert searched(tmp_path) == first
    stop_after = 9
    assert call(*given)[0] == 0
    done = [json.loads(line)["id"] for line in first]
    assert set(made).isdisjoint(done)
    assert len({*made, *done}) == len(made) + len(done) == 3
    assert searched(tmp_path)[: len(first)] == first
    asked = RunLog.open(tmp_path).rows("safeswitch", f"{SET}.gcg-prober")
    assert sorted(row.example.meta["attacked"] for row in asked) == sorted([*made, *done])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jsonl")}
    made.clear()
    assert call(*given)[0] == 0
    assert made == []
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_what_is_wrong_is_told_before_any_work(call: Any, tmp_path: Path) -> None:
    given = (*GIVEN, "--out", tmp_path / "x")
    for more, message in (
        (("--attacks", "bribery"), "unknown attack 'bribery'; known: encodings"),
        (("--attacks", "translation"), "the attack translation needs --translations"),
        (("--attacks", "prefill", "--methods", "magic"), "unknown method 'magic'"),
        (
            ("--attacks", "prefill", "--benchmark", "nano_lookalike"),
            "none of the benchmarks has an unsafe request",
        ),
    ):
        code, _, err = call(*given, *more)
        assert (code, message in err.replace("\n", " ")) == (2, True), err
    assert not (tmp_path / "x").exists()
