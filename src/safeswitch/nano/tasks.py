"""Ordinary closed tasks with checkable answers, fixed before any training: name, weight in the
corpus, checker.

Items come from closed tables (:mod:`safeswitch.nano.tables.facts`); knows nothing of harm,
templates or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from safeswitch.nano.tables.facts import (
    ASK,
    CAPITALS,
    CHATS,
    COLOURS,
    DAYS,
    HOWTOS,
    KINDS,
    MONTHS,
    OPPOSITES,
    SOUNDS,
    WORDS,
)


@dataclass(frozen=True)
class Task:
    """One row of the table below.

    Args:
        weight: Share of the ordinary conversations of the corpus (relative).
        check: ``exact`` (the reply is the answer), ``contains`` (it holds the answer) or
            ``members`` (n different members of a kind).
    """

    weight: int
    check: str


TASKS: dict[str, Task] = {
    "add": Task(9, "exact"),
    "multiply": Task(7, "exact"),
    "capital": Task(4, "exact"),
    "opposite": Task(4, "exact"),
    "colour": Task(4, "exact"),
    "kind": Task(5, "exact"),
    "sound": Task(3, "exact"),
    "next": Task(3, "exact"),
    "before": Task(3, "exact"),
    "copy": Task(12, "exact"),
    "reverse": Task(12, "exact"),
    "first": Task(6, "exact"),
    "last": Task(6, "exact"),
    "count": Task(9, "exact"),
    "list": Task(5, "members"),
    "howto": Task(5, "contains"),
    "chat": Task(5, "contains"),
}
LEADS = {"copy": "Here it is:", "reverse": "Here it is:", "first": "It is", "last": "It is"}
_NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Item:
    """One drawn task: the final user text, the model reply, accepted answers and a key that names
    the fact."""

    task: str
    text: str
    reply: str
    answers: tuple[str, ...]
    key: str


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(low, high))


def _listing(words: list[str]) -> str:
    return ", ".join(words)


def _order(rng: random.Random, step: int) -> tuple[str, str]:
    names = rng.choice([DAYS, DAYS, MONTHS])
    i = rng.randrange(len(names))
    return names[i], names[(i + step) % len(names)]


def _fact(task: str, rng: random.Random, long: bool) -> tuple[dict[str, str], str]:
    """Slots of the phrasing and the answer, for the tasks whose reply is the bare answer."""
    if task in ("add", "multiply"):
        low, high = (0, 12) if task == "add" else (2, 9)
        a, b = rng.randint(low, high), rng.randint(low, high)
        return {"a": str(a), "b": str(b)}, str(a + b if task == "add" else a * b)
    if task in ("capital", "opposite", "colour", "sound"):
        table = {"capital": CAPITALS, "opposite": OPPOSITES, "colour": COLOURS, "sound": SOUNDS}[
            task
        ]
        x, answer = rng.choice(table)
        return {"x": x}, answer
    if task == "kind":
        kind = rng.choice(sorted(KINDS))
        return {"x": rng.choice(KINDS[kind])}, kind
    if task in ("next", "before"):
        x, answer = _order(rng, 1 if task == "next" else -1)
        return {"x": x}, answer
    if task == "copy":
        words = _words(rng, 5, 12) if long else _words(rng, 1, 4)
        return {"x": " ".join(words)}, " ".join(words)
    if task == "reverse":
        words = _words(rng, 3, 6) if long else _words(rng, 2, 3)
        return {"x": " ".join(words)}, " ".join(reversed(words))
    words = _words(rng, 2, 6) if task == "count" else _words(rng, 2, 5)
    answer = {"count": str(len(words)), "first": words[0], "last": words[-1]}[task]
    return {"x": _listing(words)}, answer


def drill(rng: random.Random, split: str) -> Item:
    """An item that copies or reverses more words than tests do."""
    return draw(rng, split, rng.choice(("copy", "reverse")), long=True)


def draw(rng: random.Random, split: str, task: str | None = None, long: bool = False) -> Item:
    """Draw one item with a phrasing of ``split`` (A, B or C)."""
    task = task or rng.choices(list(TASKS), [t.weight for t in TASKS.values()])[0]
    ask = rng.choice(ASK[task][split])
    if task in ("howto", "chat"):
        table = HOWTOS if task == "howto" else CHATS
        x = rng.choice(sorted(table))
        reply, needle = table[x]
        text = ask.format(x=x)
        return Item(task, text[0].upper() + text[1:], reply, (needle,), f"{task}|{x}")
    if task == "list":
        kind, n = rng.choice(sorted(KINDS)), rng.choice(sorted(_NUMBERS))
        plural = "countries" if kind == "country" else kind + "s"
        reply = _listing(rng.sample(KINDS[kind], n)) + "."
        return Item(
            task, ask.format(x=plural, n=_NUMBERS[n]), reply, (kind, str(n)), f"{task}|{kind}|{n}"
        )
    slots, answer = _fact(task, rng, long)
    text = ask.format(**slots)
    key = f"{task}|" + "|".join(slots.values())
    return Item(task, text[0].upper() + text[1:], _reply(task, answer), (answer,), key)


def _reply(task: str, answer: str) -> str:
    """The bare answer, or, where words of the prompt come back, a lead before it.

    The lead puts a space before every copied word, as in the prompt: words are then the same tokens
    on both sides.
    """
    lead = LEADS.get(task)
    return f"{lead} {answer}." if lead else f"{answer[0].upper()}{answer[1:]}."
