"""Reasoning effort: prompts and budgets reach the engine, the table is what can be counted by hand,
the command runs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from safeswitch.bench.effort import STEP_BY_STEP, AtEffort, Effort, check_efforts, split_name
from safeswitch.bench.log import RunLog
from safeswitch.cli import main as module
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision, Message, Reply
from safeswitch.data.writers import write_examples
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano.suites import load_suite
from safeswitch.statistics.intervals import mcnemar
from tests.engines.slow import reply_alone
from tests.engines.thinking_made import thinking_lm
from tests.tiny import CHAT_TEMPLATE, VOCAB, tiny_lm, tiny_model, tiny_tokenizer


class Hearing:
    """An engine that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def generate(self, prompts: Sequence[Any], switch: Any = None, **options: Any) -> list[Reply]:
        self.asked.append((list(prompts), options))
        return [Reply("", (), "stop", Decision(False, "none"), 1) for _ in prompts]


@pytest.mark.parametrize(
    ("name", "turns", "options"),
    [
        ("plain", (Message("user", "hi"),), {}),
        ("cot", (Message("system", STEP_BY_STEP), Message("user", "hi")), {}),
        ("budget12", (Message("user", "hi"),), {"thinking_budget": 12}),
    ],
)
def test_an_effort_is_a_text_in_front_or_a_budget(
    name: str, turns: tuple[Message, ...], options: dict[str, Any]
) -> None:
    engine = Hearing()
    AtEffort(engine, Effort.parse(name)).generate([(Message("user", "hi"),)], max_new_tokens=5)  # type: ignore[arg-type]
    assert engine.asked == [([turns], {"max_new_tokens": 5, "show_thinking": False, **options})]


def test_efforts_that_cannot_be_are_refused_before_any_work() -> None:
    for names, reason in (
        (["much"], "effort must be plain"),
        (["cot", "cot"], "each once"),
        ([], "at least one"),
    ):
        with pytest.raises(SettingError, match=reason):
            check_efforts(names, tiny_lm())
    with pytest.raises(SettingError, match="no thinking marks"):
        check_efforts(["plain", "budget8"], tiny_lm())
    assert [e.budget for e in check_efforts(["plain", "budget8"], thinking_lm())] == [None, 8]
    assert split_name("scans+head@budget8") == ("scans+head", "budget8")
    with pytest.raises(SettingError, match="no method at an effort"):
        split_name("base")


def thinking_folder(folder: Path) -> LanguageModel:
    """A random model on disk whose tokenizer has marks and whose template opens its thinking."""
    tokenizer = tiny_tokenizer(
        chat_template=CHAT_TEMPLATE.replace("<|assistant|>{%", "<|assistant|><think>{%")
    )
    marks = [AddedToken(text, special=True, normalized=False) for text in ("<think>", "</think>")]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": marks}, replace_extra_special_tokens=False
    )
    model = tiny_model("llama", vocab_size=VOCAB + 2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LanguageModel(model, tokenizer)


def test_the_command_runs_methods_at_every_budget_and_tabulates_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = thinking_folder(tmp_path / "model")
    examples = [*load_suite("plain_unsafe", 4), *load_suite("lookalike", 4)]
    (tmp_path / "data").mkdir()
    write_examples(examples, tmp_path / "data" / "xstest.jsonl")
    command = [
        "safeswitch",
        "compare",
        "--model",
        str(tmp_path / "model"),
        "--methods",
        "base",
        "--efforts",
        "plain,cot,budget3",
        "--benchmark",
        "xstest",
        "--data",
        str(tmp_path / "data"),
        "--max-new-tokens",
        "10",
        "--out",
        str(tmp_path / "run"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code in (0, None)
    assert "tradeoff.csv" in capsys.readouterr().out
    log = RunLog.open(tmp_path / "run")
    assert log.methods == ("base@plain", "base@cot", "base@budget3")
    mark = lm.needs_thinking().end[0]
    for row in log.rows("base@budget3", "xstest"):
        prompt = lm.encode([row.example])[0]
        thought = reply_alone(lm, prompt, 3)
        assert mark not in thought
        answer = reply_alone(lm, [*prompt, *thought, mark], 6)
        assert row.reply == lm.tokenizer.decode(answer, skip_special_tokens=True)
    assert {row.reply for row in log.rows("base@plain", "xstest")} == {
        ""
    }  # this model never ends its thinking by itself
    with (tmp_path / "run" / "tradeoff.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    found = {(r["method"], r["effort"], r["metric"]): r for r in table}
    hits = {
        effort: [
            bool(row.judgements["rules"].complied)
            for row in log.rows(f"base@{effort}", "xstest")
            if row.example.unsafe
        ]
        for effort in ("plain", "budget3")
    }
    told = found["base", "budget3", "harmful compliance"]
    assert float(told["value"]) == sum(hits["budget3"]) / 4
    assert float(told["difference"]) == (sum(hits["budget3"]) - sum(hits["plain"])) / 4
    assert float(told["p"]) == mcnemar(hits["budget3"], hits["plain"]).p_value
    tokens = [row.made_tokens for row in log.rows("base@budget3", "xstest")]
    assert float(found["base", "budget3", "reply tokens made"]["value"]) == pytest.approx(
        sum(tokens) / len(tokens)
    )
