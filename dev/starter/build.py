"""Writes the starter set from its tables: ``python dev/starter/build.py``.

The tables hold what people wrote; this file only combines it. Every choice follows from the tables' words, so the same
tables give the same files. Both sides of a contrast pair are put in the same form and the same dress.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

TABLES = Path(__file__).parent / "tables"
OUT = Path(__file__).parents[2] / "src" / "safeswitch" / "data" / "starter"
SEVERITIES = {"!": "severe", "-": "refuse", "~": "careful"}
LOOKALIKE = "look-alike"
_FIRST_PERSON = re.compile(r"\b(?:my|me|our|us|I|I'm|myself)\b")
_PLAIN = ("question", "command", "statement")
_DOUBLED = ("begin", "control", "forget", "kidnap", "quit", "travel")


@dataclass(frozen=True)
class Side:
    """One side of a contrast: an action (an infinitive) or a whole request, and what it deserves."""

    text: str
    unsafe: bool
    category: str
    severity: str


@dataclass(frozen=True)
class Pair:
    """Two sides that share words; ``form`` is empty for actions."""

    group: str
    form: str
    sides: tuple[Side, Side]

    @property
    def split(self) -> str:
        """Where the group belongs."""
        return split_of(self.group)

    @property
    def first_person(self) -> bool:
        """Whether a side speaks of me."""
        return any(_FIRST_PERSON.search(side.text) for side in self.sides)


@dataclass(frozen=True)
class Phrasing:
    """A way to ask for an action."""

    form: str
    template: str
    held: bool
    third: bool


def split_of(group: str) -> str:
    """``train``, ``validation``, ``calibration`` or ``held``, from the group's name alone."""
    place = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % 20
    return "held" if place < 3 else "calibration" if place < 6 else "validation" if place < 9 else "train"


def lines(name: str) -> list[str]:
    """The lines of a table without comments and empty ones."""
    text = (TABLES / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def pairs(name: str) -> Iterator[Pair]:
    """The pairs of a table."""
    category = severity = ""
    number = 0
    for line in lines(name):
        if line.startswith("["):
            category, severity = line.strip("[]").split()
            number = 0
            continue
        number += 1
        yield read_pair(line, f"{category}-{number:02}", category, severity)


def read_pair(line: str, group: str, category: str, severity: str) -> Pair:
    """``=form| unsafe || safe``."""
    form = ""
    if line.startswith("="):
        form, line = line[1:].split("|", 1)
    unsafe, safe = (part.strip() for part in line.split("||"))
    if unsafe[0] in SEVERITIES:
        severity, unsafe = SEVERITIES[unsafe[0]], unsafe[1:]
    touches = safe.startswith("^")
    safe = safe.removeprefix("^")
    bad = Side(unsafe, True, category, severity)
    return Pair(group, form, (bad, Side(safe, False, category, "allow" if touches else "")))


def phrasings() -> list[Phrasing]:
    """The ways to ask."""
    found = []
    for line in lines("phrasings.txt"):
        form, template = (part.strip() for part in line.split("|", 1))
        found.append(Phrasing(form.rstrip("*3"), template, "*" in form, "3" in form))
    return found


def gerund(action: str) -> str:
    """``kill a process`` -> ``killing a process``."""
    verb, space, rest = action.partition(" ")
    if verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")) and verb != "be":
        verb = verb[:-1]
    elif re.fullmatch(r"[^aeiou]{1,3}[aeiou][bdgmnprt]", verb) or verb in _DOUBLED:
        verb += verb[-1]
    return f"{verb}ing{space}{rest}"


def ask(template: str, action: str) -> str:
    """The template filled; its first letter is large where the template begins with the action in a sentence."""
    return template.replace("{a}", action).replace("{g}", gerund(action))


def row(kind: str, name: str, text: str, side: Side, pair: Pair, form: str, lang: str = "en") -> dict[str, object]:
    """A row of a file of the set."""
    meta = {"form": form, "lang": lang, "split": pair.split}
    if side.severity:
        meta["severity"] = side.severity
    if not side.unsafe:
        meta["contrast"] = side.category
    return {
        "id": name, "prompt": text, "label": "unsafe" if side.unsafe else "safe",
        "category": side.category if side.unsafe else LOOKALIKE, "source": f"starter/{kind}", "group": pair.group, "meta": meta,
    }


def both(kind: str, tag: str, pair: Pair, form: str, texts: tuple[str, str]) -> list[dict[str, object]]:
    """The two rows of a pair."""
    found = []
    for side, text in zip(pair.sides, texts, strict=True):
        found.append(row(kind, f"{pair.group}-{tag}-{'u' if side.unsafe else 's'}", text, side, pair, form))
    return found


def usable(pair: Pair, known: list[Phrasing]) -> list[Phrasing]:
    """The phrasings that suit both sides; held-out groups have their own."""
    joined = any(" and " in side.text for side in pair.sides)
    fits = [p for p in known if p.held == (pair.split == "held")]
    fits = [p for p in fits if not (p.third and pair.first_person)]
    return [p for p in fits if not (joined and "{g}" in p.template)]


def draw(pair: Pair, known: list[Phrasing], count: int) -> list[Phrasing]:
    """``count`` phrasings of different forms: the forms take turns over all pairs of a table."""
    rng = random.Random(f"phrasing {pair.group}")
    by_form: dict[str, list[Phrasing]] = {}
    for phrasing in usable(pair, known):
        by_form.setdefault(phrasing.form, []).append(phrasing)
    weights = [3 if form == "question" else 2 if form in ("command", "tutorial") else 1 for form in by_form]
    chosen: list[str] = []
    while len(chosen) < count:
        form = rng.choices(list(by_form), weights)[0]
        if form not in chosen:
            chosen.append(form)
    return [rng.choice(by_form[form]) for form in chosen]


def roughened(text: str, how: str, rng: random.Random) -> str:
    """All in small letters without a full stop, or with a few slips of the fingers."""
    if how == "lower":
        return text.lower().rstrip(".?!")
    words = text.split(" ")
    long_ones = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    for i in rng.sample(long_ones, min(len(long_ones), 1 + len(long_ones) // 3)):
        place = rng.randrange(1, len(words[i]) - 2)
        word = words[i]
        swapped = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        words[i] = swapped if rng.random() < 0.6 else word[:place] + word[place + 1 :]
    return " ".join(words)


TABLE_NAMES = ("pairs_crime.txt", "pairs_people.txt", "pairs_society.txt")


def phrased() -> Iterator[dict[str, object]]:
    """Kind ``pairs``: every action asked for in three ways, one of them now and then rough."""
    known = phrasings()
    for name in TABLE_NAMES:
        for pair in pairs(name):
            if pair.form:
                continue
            rng = random.Random(f"rough {pair.group}")
            for number, phrasing in enumerate(draw(pair, known, 2)):
                form = phrasing.form
                texts = tuple(ask(phrasing.template, side.text) for side in pair.sides)
                if form in _PLAIN and rng.random() < 0.25:
                    form = rng.choice(("lower", "typos"))
                    texts = tuple(roughened(text, form, rng) for text in texts)
                yield from both("pairs", str(number), pair, form, (texts[0], texts[1]))


def sentences() -> Iterator[dict[str, object]]:
    """Kind ``sentences``: whole requests as they stand."""
    for name in TABLE_NAMES:
        for pair in pairs(name):
            if pair.form:
                yield from both("sentences", "w", pair, pair.form, (pair.sides[0].text, pair.sides[1].text))


KINDS = {"pairs": phrased, "sentences": sentences}


def files() -> dict[str, str]:
    """File name to its whole text."""
    found = {}
    for kind, make in KINDS.items():
        found[f"{kind}.jsonl"] = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in make())
    return found


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for file_name, text in files().items():
        (OUT / file_name).write_text(text, encoding="utf-8")
        print(file_name, text.count("\n"))
