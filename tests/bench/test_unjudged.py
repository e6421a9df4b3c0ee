"""Replies without a verdict, and requests that cannot be attacked: counted by reason, asked for
again, in nobody's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from safeswitch.attacks.base import Attack, Victim, attacked
from safeswitch.attacks.sets import attack_set
from safeswitch.bench.judges.base import Judge
from safeswitch.bench.log import Logged, LoggedRows
from safeswitch.bench.outputs import remarks
from safeswitch.bench.record_tables import not_judged
from safeswitch.bench.runner import judge_rows
from safeswitch.bench.tables import rates
from safeswitch.bench.verdict import Verdict
from safeswitch.core.errors import DataError, TemplateError
from safeswitch.core.types import Example
from tests.bench.made import SWITCHES, Scripted, asked, loaded, run
from tests.tiny import tiny_lm


class Sometimes(Judge):
    """Gives no verdict on some replies."""

    name = "sometimes"

    def __init__(self, without: Mapping[str, str]) -> None:
        self.without = without
        self.seen: list[str] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"version": 1}

    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        self.seen += [row.example.id for row in rows]
        return [self._one(row.example.id) for row in rows]

    def _one(self, name: str) -> Verdict:
        reason = self.without.get(name, "")
        return (
            Verdict(note="why", unjudged=reason)
            if reason
            else Verdict(refused=False, complied=True)
        )


def test_replies_without_a_verdict_are_counted_by_reason_and_judged_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    log = run(tmp_path, [loaded("a", asked("a", 6))], Scripted(), {"base": SWITCHES["base"]})
    log.add_judges(
        {"a": ["sometimes"]}, {"sometimes": {"identity": {"version": 1}, "agreement": []}}
    )
    judge_rows(log, "base", "a", Sometimes({"a1": "filtered", "a2": "filtered", "a4": "empty"}))
    (empty, filtered) = not_judged(LoggedRows(log))
    assert [(row["reason"], row["replies"], row["of"]) for row in (empty, filtered)] == [
        ("empty", 1, 6),
        ("filtered", 2, 6),
    ]
    assert {r["n"] for r in rates(LoggedRows(log)) if r["judge"] == "sometimes"} == {3}
    told = "\n".join(remarks(LoggedRows(log)))
    assert "NOT JUDGED: 2 of 6 replies of base to a by sometimes, filtered." in told
    again = Sometimes({"a4": "empty"})
    judge_rows(log, "base", "a", again)
    assert again.seen == ["a1", "a2", "a4"]
    assert [(row["reason"], row["replies"]) for row in not_judged(LoggedRows(log))] == [
        ("empty", 1)
    ]
    assert {r["n"] for r in rates(LoggedRows(log)) if r["judge"] == "sometimes"} == {5}


@dataclass(frozen=True)
class Picky(Attack):
    """Fails on some requests."""

    last: str = "2"
    name: ClassVar[str] = "picky"
    paper: ClassVar[str] = "none"

    def attack(self, example: Example, victim: Victim) -> list[Example]:
        if example.id[-1] >= self.last:
            raise TemplateError("refused")
        return [attacked(example, self, "x")]


def test_a_request_that_cannot_be_attacked_costs_no_other_its_forms(tmp_path: Path) -> None:
    said: list[str] = []
    made = attack_set(
        loaded("b", asked("b", 4)),
        Picky(),
        Victim(tiny_lm()),
        tmp_path,
        identity={},
        say=said.append,
    )
    assert [e.meta["attacked"] for e in made.examples] == ["b0", "b1"]
    assert said == [
        "note: 2 of 4 requests cannot be attacked with picky; the first, 'b2': TemplateError: refused"
    ]
    again = attack_set(
        loaded("b", asked("b", 4)),
        Picky(),
        Victim(tiny_lm()),
        tmp_path,
        identity={},
        say=said.append,
    )
    assert again.examples == made.examples
    with pytest.raises(
        DataError, match="applies to none of the 4 requests; the first reason, 'c0': TemplateError"
    ):
        attack_set(loaded("c", asked("c", 4)), Picky("0"), Victim(tiny_lm()), tmp_path, identity={})
