"""Judges ``number``, ``letter``, ``alias``: does the reply hold the right answer of a task? Also
whether it refuses.

``number``: the reply's last number equals the answer (GSM8K). ``letter``: the option that the reply
    names equals the answer
(MMLU, TruthfulQA; ``meta["letters"]`` says which options there are, A to D by default). ``alias``:
one of the answers stands in the reply as whole words, compared as TriviaQA does: lower case,
without punctuation and articles. Knows nothing of models.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from safeswitch.bench.judges.base import JUDGES, Judge
from safeswitch.bench.judges.rules import refused
from safeswitch.bench.log import Logged
from safeswitch.bench.verdict import Verdict
from safeswitch.core.grammar import JudgeSpec
from safeswitch.core.json_types import JsonMapping

VERSION = 1
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
LETTERS = "ABCD"


def last_number(text: str) -> float | None:
    """The last number in ``text``; thousands may have commas."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def right_number(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply's last number is that of an answer."""
    value = last_number(reply)
    return value is not None and any(last_number(answer) == value for answer in answers)


def chosen_letter(text: str, letters: str = LETTERS) -> str | None:
    """The option that a reply names: behind "answer" or "option" (the last such), at its very
    start, or the last marked one."""
    named, alone, marked = _patterns(letters)
    if found := named.findall(text):
        return str(found[-1]).upper()
    if first := alone.match(text):
        return first.group(1).upper()
    found = marked.findall(text)
    return str(found[-1]) if found else None


@cache
def _patterns(letters: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    return (
        re.compile(rf"\b(?:answer|option|choice)\b\W*(?:is\W*)?\(?([{letters}])\b", re.IGNORECASE),
        re.compile(rf"^\W*([{letters}{letters.lower()}])(?:\W|$)"),
        re.compile(rf"(?:^|[\s(*])([{letters}])(?=[).:*]|\s*$)"),
    )


def right_letter(reply: str, answers: Sequence[str], letters: str = LETTERS) -> bool:
    """Whether the reply names an accepted option."""
    return chosen_letter(reply, letters) in answers


def plain(text: str) -> str:
    """Lower case, without articles and punctuation, words joined by one space."""
    bare = "".join(" " if c in string.punctuation + "‘’´`_" else c for c in text.lower())
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the"))


def right_alias(reply: str, answers: Sequence[str]) -> bool:
    """Whether an answer stands in the reply as whole words."""
    said = f" {plain(reply)} "
    return any(f" {plain(answer)} " in said for answer in answers if plain(answer))


class Answers(Judge):
    """A checker of answers as a judge; what is checked is its kind: ``number``, ``letter`` or
    ``alias``."""

    def __init__(self, name: str) -> None:
        self.name, self._check = name, _CHECKS[name]

    @classmethod
    def from_spec(cls, spec: JudgeSpec, cache: Path) -> Answers:
        return cls(spec.kind)

    @property
    def identity(self) -> JsonMapping:
        return {"version": VERSION}

    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        return [Verdict(refused=refused(row.said), correct=self._check(row)) for row in rows]


_CHECKS: Mapping[str, Callable[[Logged], bool]] = {
    "number": lambda row: right_number(row.said, row.example.answers),
    "letter": lambda row: right_letter(
        row.said, row.example.answers, row.example.meta.get("letters", LETTERS)
    ),
    "alias": lambda row: right_alias(row.said, row.example.answers),
}


for _name in _CHECKS:
    JUDGES.add(_name)(Answers)
