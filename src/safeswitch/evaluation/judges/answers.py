"""Judges ``number``, ``letter``, ``alias``: does the reply hold the right answer of a task? Also whether it refuses.

``number``: the reply's last number equals the answer (GSM8K). ``letter``: the option that the reply names equals the answer
(MMLU). ``alias``: one of the answers stands in the reply as whole words, compared as TriviaQA does: lower case, without
punctuation and articles. Knows nothing of models.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safeswitch.evaluation.judges.base import JUDGES, Judge
from safeswitch.evaluation.judges.rules import refused
from safeswitch.evaluation.log import Logged
from safeswitch.evaluation.verdict import Verdict

VERSION = 1
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_NAMED = re.compile(r"\b(?:answer|option|choice)\b\W*(?:is\W*)?\(?([A-D])\b", re.IGNORECASE)
_ALONE = re.compile(r"^\W*([A-Da-d])(?:\W|$)")
_MARKED = re.compile(r"(?:^|[\s(*])([A-D])(?=[).:*]|\s*$)")


def last_number(text: str) -> float | None:
    """The last number in ``text``; thousands may have commas."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def right_number(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply's last number is that of an answer."""
    value = last_number(reply)
    return value is not None and any(last_number(answer) == value for answer in answers)


def chosen_letter(text: str) -> str | None:
    """The option that a reply names: behind "answer" or "option" (the last such), at its very start, or the last marked one."""
    if named := _NAMED.findall(text):
        return str(named[-1]).upper()
    if alone := _ALONE.match(text):
        return alone.group(1).upper()
    marked = _MARKED.findall(text)
    return str(marked[-1]) if marked else None


def right_letter(reply: str, answers: Sequence[str]) -> bool:
    """Whether the reply names an accepted option."""
    return chosen_letter(reply) in answers


def plain(text: str) -> str:
    """Lower case, without articles and punctuation, words joined by one space."""
    bare = "".join(" " if c in string.punctuation + "‘’´`_" else c for c in text.lower())
    return " ".join(word for word in bare.split() if word not in ("a", "an", "the"))


def right_alias(reply: str, answers: Sequence[str]) -> bool:
    """Whether an answer stands in the reply as whole words."""
    said = f" {plain(reply)} "
    return any(f" {plain(answer)} " in said for answer in answers if plain(answer))


class Answers(Judge):
    """A checker of answers as a judge."""

    def __init__(self, name: str, check: Callable[[str, Sequence[str]], bool]) -> None:
        self.name, self._check = name, check

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"version": VERSION}

    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        return [
            Verdict(refused=refused(row.said), correct=self._check(row.said, row.example.answers)) for row in rows
        ]


_CHECKS: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "number": right_number, "letter": right_letter, "alias": right_alias,
}


def _add(name: str, check: Callable[[str, Sequence[str]], bool]) -> None:
    JUDGES.add(name)(lambda: Answers(name, check))


for _name, _check in _CHECKS.items():
    _add(_name, _check)
