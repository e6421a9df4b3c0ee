"""Replies compared with those of the untouched model, in both orders, by a chat model over a real
server."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.bench import now
from safeswitch.bench.candidates import check_methods
from safeswitch.bench.judges.base import make_judge
from safeswitch.bench.judges.chat_model import ChatModel, NoAnswerError
from safeswitch.bench.judges.pairwise import Pairwise
from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.outputs import write_tables
from safeswitch.bench.runner import compare_replies
from safeswitch.bench.tables import wins
from safeswitch.bench.verdict import Verdict
from safeswitch.core.errors import SettingError
from tests.bench.chat_server import chat_server
from tests.bench.made import Scripted, asked, loaded, logged, odd, run

OPEN = asked("o", 8, "safe")


def replies(question: str) -> dict[str, str]:
    """The two replies that a question shows, by place."""
    return {
        place: re.findall(f"<{place}>\n(.*?)\n</{place}>", question, re.DOTALL)[0]
        for place in ("first", "second")
    }


def longer(question: str) -> str:
    """Prefers the longer reply, wherever it stands."""
    shown = replies(question)
    return f'Well: {{"better": "{max(shown, key=lambda place: len(shown[place]))}"}}'


class Told:
    """A chat model that answers by a rule."""

    model, base_url = "m", None

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.asked: list[str] = []

    def ask(self, system: str, user: str, readable: Any) -> str:
        self.asked.append(user)
        answer = str(self.rule(user))
        if not readable(answer):
            raise NoAnswerError("unreadable", answer)
        return answer


@pytest.mark.parametrize(
    ("rule", "won"),
    [
        (longer, 1.0),
        (
            lambda q: (
                longer(q).replace("first", "x").replace("second", "first").replace("x", "second")
            ),
            0.0,
        ),
        (lambda q: '{"better": "first"}', 0.5),
        (lambda q: '{"better": "tie"}', 0.5),
        (lambda q: '{"better": "tie"}' if len(replies(q)["first"]) > 5 else longer(q), 0.75),
        (lambda q: "the first", None),
        (lambda q: '{"better": "both"}', None),
    ],
    ids=["longer", "shorter", "first place", "tie", "half", "no object", "another word"],
)
def test_a_preference_counts_half_where_the_order_turns_it(rule: Any, won: float | None) -> None:
    model = Told(rule)
    (said,) = Pairwise(model, {"o0": logged(OPEN[0], "short")}).judge(
        [logged(OPEN[0], "a long reply")]
    )
    assert said.won == won
    assert said.unjudged == ("unreadable" if won is None else "")
    both = [
        {"first": "a long reply", "second": "short"},
        {"first": "short", "second": "a long reply"},
    ]
    assert [replies(q) for q in model.asked] == both[: len(model.asked)]
    assert len(model.asked) == (1 if won is None else 2)
    assert all("<request>\no 0\n</request>" in q for q in model.asked)


def test_equal_replies_are_not_asked_about_and_a_missing_one_is_told() -> None:
    model = Told(longer)
    judge = Pairwise(model).beside({"o0": logged(OPEN[0], "same")})
    assert judge.judge([logged(OPEN[0], "same"), logged(OPEN[1], "x")]) == [
        Verdict(won=0.5, note="the same reply"),
        Verdict(note="no reply of base to compare with", unjudged="nothing to compare with"),
    ]
    assert model.asked == []


def test_a_run_has_win_rates_against_the_untouched_model_and_asks_nothing_twice(
    tmp_path: Path,
) -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> str:
        seen.append(body)
        return longer(body["messages"][1]["content"])

    given = loaded("open", OPEN, measures="open")
    judged = loaded("open", OPEN, measures="open", judges=("rules", "pairwise"))
    with chat_server(answer) as url:
        judge = Pairwise(ChatModel("big", url, api_key="k"))
        log = run(tmp_path, [given], Scripted(unsafe=odd))
        log.add_judges(
            {"open": judged.benchmark.judges}, {"pairwise": {"identity": judge.identity}}
        )
        for _ in range(2):
            compare_replies(log, {"pairwise": judge})
            assert (
                len(seen) == 2 * 4
            )  # "I can't help with that." stands four times against "You said: o 1"; the others agree
    log.finish(now())
    (row,) = wins(LoggedRows(RunLog.open(tmp_path)))
    assert (row["method"], row["against"], row["judge"], row["n"]) == (
        "prompt",
        "base",
        "pairwise",
        8,
    )
    assert row["value"] == pytest.approx((4 * 0.5 + 4 * 1.0) / 8)
    assert row["low"] < row["value"] < row["high"]
    write_tables(tmp_path)
    assert "win rate" in (tmp_path / "tables" / "wins.md").read_text()


def test_it_needs_the_method_that_it_compares_with_and_speaks_of_open_requests_alone(
    tmp_path: Path,
) -> None:
    judge = make_judge("pairwise:m@http://127.0.0.1:9/v1", tmp_path)
    assert [judge.speaks_of(what) for what in ("open", "task", "safety")] == [True, False, False]
    check_methods(("base", "safeswitch"), [judge])
    with pytest.raises(
        SettingError, match="judge pairwise compares with base; add it to the methods safeswitch"
    ):
        check_methods(("safeswitch",), [judge])


def test_a_run_that_goes_on_without_a_judge_keeps_what_it_said(tmp_path: Path) -> None:
    given = loaded("open", OPEN[:2], measures="open")
    log = run(tmp_path, [given], Scripted())
    log.add_judges(
        {"open": ("pairwise", "openai")}, {"pairwise": {"identity": {"against": "base"}}}
    )
    more = replace(given, examples=tuple(OPEN[:3]))
    again = run(tmp_path, [more], Scripted())
    assert {len(again.rows(m, "open")) for m in again.methods} == {3}
    assert again.judges("open") == ("rules", "pairwise", "openai")
