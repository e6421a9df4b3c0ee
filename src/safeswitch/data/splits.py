"""Splits that keep what belongs together on one side.

Knows examples. Knows nothing of files or models.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Example
from safeswitch.data.text import normalise

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.6, "validation": 0.2, "calibration": 0.2}
HELD = "held"
"""Split of rows that nothing is fitted on."""
STARTER = "starter"
"""The starter set; its rows are of the sources ``starter/<kind>``."""


def is_starter(source: str) -> bool:
    """Whether a source is a kind of the starter set."""
    return source.startswith(f"{STARTER}/")


def grouped_split(
    examples: Sequence[Example], fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> dict[str, list[Example]]:
    """Divide ``examples`` so that no group, and no two equal prompts, stand on two sides.

    Groups (examples tied by ``group`` or by equal normalised prompt) are lined up by label and
    source, within these by a hash of seed and content, and dealt out one by one to the split that
    is furthest behind its fraction. Every run of the line-up is thus divided in proportion, so
    labels and sources are too, up to the size of a group. The result does not depend on the order
    of ``examples``.

    Args:
        examples: What to divide.
        fractions: Split name to its fraction of the examples; they add up to 1.
        seed: Another seed gives another split.

    Returns:
        Split name to its examples, in their original order.

    Raises:
        SettingError: fractions that are not positive or do not add up to 1.
        DataError: too few groups for every split to get one.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise SettingError(
            f"grouped_split: fractions must be positive and add up to 1; got {dict(fractions)}"
        )
    behind = dict.fromkeys(fractions, 0.0)
    chosen: dict[int, str] = {}
    lined_up = _line_up(examples, tied_rows(examples), seed)
    for tied in lined_up:
        for name, fraction in fractions.items():
            behind[name] += fraction * len(tied)
        target = max(fractions, key=lambda name: behind[name])
        behind[target] -= len(tied)
        chosen.update(dict.fromkeys(tied, target))
    result: dict[str, list[Example]] = {name: [] for name in fractions}
    for i, example in enumerate(examples):
        result[chosen[i]].append(example)
    empty = [name for name, part in result.items() if not part]
    if empty:
        raise DataError(
            f"nothing is left for {', '.join(empty)}: {len(examples)} examples in {len(lined_up)} "
            f"groups cannot be divided into {dict(fractions)}"
        )
    return result


def fit_split(examples: Sequence[Example], seed: int = 0) -> dict[str, list[Example]]:
    """Parts ``train``, ``validation`` and ``calibration``: the rows' own, where every row names its
    part, else drawn.

    A row names its part in ``meta["split"]``, as those of the starter set do; one that says
    ``held`` is in no part. Where a row names none, another one, or a part is named by no row,
    :func:`grouped_split` draws the parts.
    """
    own = [example.meta.get("split") for example in examples]
    if set(own) - {HELD} != set(DEFAULT_FRACTIONS):
        return grouped_split(examples, seed=seed)
    parts: dict[str, list[Example]] = {name: [] for name in DEFAULT_FRACTIONS}
    for example, name in zip(examples, own, strict=True):
        if name in parts:
            parts[name].append(example)
    return parts


def tied_rows(examples: Sequence[Example]) -> list[int]:
    """Number of each example's tie: the first example that it is tied to, directly or
    through others."""
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, example in enumerate(examples):
        keys = [("text", normalise(example.prompt))]
        if example.group:
            keys.append(("group", example.group))
        for key in keys:
            a, b = root(first.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(examples))]


def _line_up(examples: Sequence[Example], group_of: Sequence[int], seed: int) -> list[list[int]]:
    """Groups of tied rows, as lists of row numbers, ordered by their commonest label and source and
    then by hash."""
    members: dict[int, list[int]] = {}
    for i, group in enumerate(group_of):
        members.setdefault(group, []).append(i)

    def key(rows: list[int]) -> tuple[str, str, str]:
        strata = Counter((examples[i].label, examples[i].source) for i in rows)
        label, source = min(strata, key=lambda s: (-strata[s], s))
        content = sorted(f"{examples[i].id}\0{examples[i].prompt}" for i in rows)
        return label, source, hashlib.sha256("\0".join([str(seed), *content]).encode()).hexdigest()

    return sorted(members.values(), key=key)
