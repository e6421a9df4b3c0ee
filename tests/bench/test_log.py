"""The run folder: what is written is read back, another run is refused, a torn line and stale
judgements do not count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safeswitch.bench.judges.rules import RulesJudge
from safeswitch.bench.log import RunLog
from safeswitch.bench.runner import judge_rows
from safeswitch.bench.verdict import Verdict
from safeswitch.core.errors import ArtifactError
from safeswitch.core.types import Example, Message
from tests.bench.made import Scripted, asked, loaded, manifest, odd, run

RICH = Example(
    "x",
    (Message("system", "s"), Message("user", "u 1")),
    "safe",
    "c",
    "src",
    "g",
    "w",
    "target",
    ("1", "2"),
    {"lang": "zh"},
)


def test_a_row_holds_the_whole_request_but_its_target_and_the_cost(tmp_path: Path) -> None:
    log = run(tmp_path, [loaded("a", [RICH])], Scripted(unsafe=odd))
    (row,) = log.rows("prompt", "a")
    assert row.example == Example(
        "x", RICH.messages, "safe", "c", "src", "g", "w", None, ("1", "2"), {"lang": "zh"}
    )
    assert (row.language, row.reply, row.finish_reason) == ("zh", "I can't help with that.", "stop")
    assert (row.decision["fired"], row.decision["stage"]) == (True, "stage1")
    assert (row.prompt_tokens, row.reply_tokens, row.fed_tokens, row.made_tokens) == (2, 5, 2, 5)
    assert row.seconds > 0
    assert row.judgements == {"rules": Verdict(refused=True, complied=False, explained=False)}


def test_a_run_is_opened_as_it_was_left_and_another_is_refused(tmp_path: Path) -> None:
    log = run(tmp_path, [loaded("a", asked("a", 3))], Scripted())
    opened = RunLog.open(tmp_path)
    assert opened.manifest == log.manifest
    assert opened.rows("base", "a") == log.rows("base", "a")
    given = manifest([loaded("a", asked("a", 3))])
    assert RunLog.start(tmp_path, given).methods == ("base", "prompt")
    with pytest.raises(ArtifactError, match="holds a run with another model; name another folder"):
        RunLog.start(tmp_path, {**given, "identity": {"model": "other"}})
    (tmp_path / "manifest.json").write_text(json.dumps({**opened.manifest, "format_version": 9}))
    with pytest.raises(
        ArtifactError, match="format version 9 is not supported; this library reads 1"
    ):
        RunLog.open(tmp_path)


def test_a_torn_last_line_does_not_count_and_is_done_again(tmp_path: Path) -> None:
    given = [loaded("a", asked("a", 5))]
    whole = run(tmp_path / "whole", given, Scripted(unsafe=odd))
    log = run(tmp_path / "torn", given, Scripted(unsafe=odd))
    for path in (log.replies_path("prompt", "a"), log.judgements_path("prompt", "a", "rules")):
        path.write_bytes(path.read_bytes()[:-30])
    assert len(log.rows("prompt", "a")) == 4
    engine = Scripted(unsafe=odd)
    again = run(tmp_path / "torn", given, engine)
    assert [texts for texts, _ in engine.calls] == [("a 4",)]

    def told(one: RunLog) -> list[tuple[str, str | None, Verdict]]:
        return [(r.example.id, r.reply, r.judgements["rules"]) for r in one.rows("prompt", "a")]

    assert told(again) == told(whole)


def test_a_judgement_of_another_reply_does_not_count(tmp_path: Path) -> None:
    log = run(tmp_path, [loaded("a", asked("a", 2))], Scripted())
    path = log.judgements_path("base", "a", "rules")
    first, second = path.read_text().splitlines()
    path.write_text(json.dumps({**json.loads(first), "request": "0" * 16}) + "\n" + second + "\n")
    assert [sorted(row.judgements) for row in log.rows("base", "a")] == [[], ["rules"]]


def test_a_judge_that_comes_later_judges_what_is_there_and_nothing_is_generated(
    tmp_path: Path,
) -> None:
    log = run(tmp_path, [loaded("a", asked("a", 3))], Scripted())

    class Late(RulesJudge):
        name = "late"

    judge_rows(log, "base", "a", Late())
    log.add_judges({"a": ["late"]}, {"late": {"identity": {}, "agreement": []}})
    assert RunLog.open(tmp_path).judges("a") == ("rules", "late")
    assert {tuple(sorted(row.judgements)) for row in log.rows("base", "a")} == {("late", "rules")}


def test_a_request_that_the_model_cannot_take_has_a_reason_and_no_judgement(tmp_path: Path) -> None:
    from safeswitch.core.errors import ContextLengthError

    class Short(Scripted):
        def generate(self, prompts, switch=None, **options):  # type: ignore[no-untyped-def]
            if any(e.id == "a1" for e in prompts):
                raise ContextLengthError("too long")
            return super().generate(prompts, switch, **options)

    log = run(tmp_path, [loaded("a", asked("a", 3))], Short())
    rows = log.rows("base", "a")
    assert [row.error for row in rows] == [None, "ContextLengthError: 'a1': too long", None]
    assert [bool(row.judgements) for row in rows] == [True, False, True]
