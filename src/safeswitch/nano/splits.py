"""Which prompt belongs to whom: three disjoint buckets of final user texts, and the A/B/C splits of
parts.

Parts (objects, phrasings, jailbreak templates, categories): **A** language model, probers and head;
    **B** language model only;
**C** nothing. Requests: a checksum of the bare request, without small talk or template, says
whether it may be in the corpus of the language model, in fit data, or in a test suite, so that no
test request can occur in either of the other two, in whatever dress.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Literal

from safeswitch.nano.tables.objects import OBJECTS
from safeswitch.nano.tables.verbs import CATEGORIES, VERBS

Bucket = Literal["corpus", "fit", "test"]
SPLITS: tuple[str, ...] = ("A", "B", "C")


def checksum(text: str) -> int:
    """A stable number for a text (not the salted ``hash``)."""
    return zlib.crc32(text.encode("utf-8"))


def bucket(request: str) -> Bucket:
    """The only place where this bare request may be used: 70 % corpus, 15 % fit, 15 % test."""
    rest = checksum("nano:" + request) % 20
    return "test" if rest < 3 else "fit" if rest < 6 else "corpus"


def objects(kind: str, split: str) -> tuple[str, ...]:
    """Objects of a type in a split."""
    return tuple(x.strip() for x in OBJECTS[kind][1 + SPLITS.index(split)].split(","))


@cache
def unsafe_actions(category_split: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """(verb, object type) pairs by harm category, for the categories of a split."""
    found: dict[str, list[tuple[str, str]]] = {
        c: [] for c, row in CATEGORIES.items() if row[0] == category_split
    }
    for verb, (_, harmful, _) in VERBS.items():
        for category, kinds in harmful.items():
            if category in found:
                found[category] += [(verb, kind) for kind in kinds.split()]
    return {category: tuple(pairs) for category, pairs in found.items()}


@cache
def safe_actions(twins: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Safe (verb, types): ``twins`` are verbs that are unsafe with other types, else verbs that are
    always safe."""
    rows = [
        (verb, tuple(safe.split()))
        for verb, (_, harmful, safe) in VERBS.items()
        if bool(harmful) == twins
    ]
    return tuple((verb, kinds) for verb, kinds in rows if kinds)
