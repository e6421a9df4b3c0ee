"""Requests that stand in the data twice, once as safe and once as unsafe. Knows nothing of files or
models."""

from __future__ import annotations

from collections.abc import Sequence

from safeswitch.core.types import Example
from safeswitch.data.text import normalise


def contradictions(examples: Sequence[Example]) -> list[tuple[Example, ...]]:
    """The rows of each conversation that has both labels, in the order in which the first of each
    comes.

    Conversations are the same where role and normalised text of every turn, and their images, are.
    Which of the labels is right cannot be told from the data, so callers count and report these
    rows, and do not choose.
    """
    same: dict[tuple[object, ...], list[Example]] = {}
    for example in examples:
        same.setdefault(_key(example), []).append(example)
    found: list[tuple[Example, ...]] = []
    for rows in same.values():
        labels = {row.label for row in rows}
        if {"safe", "unsafe"} <= labels:
            found.append(tuple(rows))
    return found


def describe(found: Sequence[Sequence[Example]]) -> str:
    """How many there are, and the first."""
    rows = sum(map(len, found))
    named = " and ".join(f"{row.called} as {row.label}" for row in found[0][:2])
    return (
        f"{rows} rows are {len(found)} requests that are labelled both safe and unsafe; the first: "
        f"{named}"
    )


def _key(example: Example) -> tuple[object, ...]:
    turns = [(m.role, normalise(m.content), m.images) for m in example.messages]
    return (*turns, normalise(example.prefill))
