"""``safeswitch score``: a file of requests becomes a file of decisions, and a cut run is resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safeswitch.cli.main import app
from safeswitch.core.types import Decision, Example, Message, Prompt
from safeswitch.data.writers import write_examples
from safeswitch.engines.transformers import screen as module
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.screen import screen
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.switch import Switch

EXAMPLES = [e for name in ("plain_unsafe", "ordinary") for e in load_suite(name, 5, 0)]
TOO_LONG = Example("long", (Message("user", "word " * 600),))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_request_gets_its_decision_and_one_that_does_not_fit_its_reason(
    tmp_path: Path,
) -> None:
    write_examples([*EXAMPLES, TOO_LONG], tmp_path / "in.jsonl")
    asked = ("--model", "nano", "--switch", "nano", "--in", tmp_path / "in.jsonl")
    assert run(*asked, "--out", tmp_path / "out.jsonl").exit_code == 0
    engine, switch = TransformersEngine.load(weights_path()), Switch.from_pretrained(switch_path())
    told = engine.generate(EXAMPLES, switch, max_new_tokens=1, do_sample=False)
    *found, last = rows(tmp_path / "out.jsonl")
    assert "ContextLengthError" in last["error"]
    for row, reply in zip(found, told, strict=True):
        score = reply.decision.scores["stage1"]
        assert row["decision"]["scores"]["stage1"] == pytest.approx(score, abs=1e-5)
        assert row["flagged"] == (score > reply.decision.thresholds["stage1"])
        assert "reply" not in row
    assert {row["flagged"] for row in found} == {True, False}


def test_a_run_that_was_cut_off_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_examples(EXAMPLES, tmp_path / "in.jsonl")
    asked = (
        "--model",
        "nano",
        "--switch",
        "nano",
        "--in",
        tmp_path / "in.jsonl",
        "--batch-size",
        2,
    )
    assert run(*asked, "--out", tmp_path / "whole.jsonl").exit_code == 0
    calls: list[int] = []

    def breaks(engine: Any, prompts: Sequence[Prompt], switch: Switch) -> list[Decision]:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return screen(engine, prompts, switch)

    monkeypatch.setattr(module, "screen", breaks)
    assert run(*asked, "--out", tmp_path / "cut.jsonl").exit_code == 130
    assert len(rows(tmp_path / "cut.jsonl")) == 4
    assert run(*asked, "--out", tmp_path / "cut.jsonl").exit_code == 0
    assert calls == [4, 4, 4, 2]
    flags = [(row["id"], row["flagged"]) for row in rows(tmp_path / "whole.jsonl")]
    assert [(row["id"], row["flagged"]) for row in rows(tmp_path / "cut.jsonl")] == flags
