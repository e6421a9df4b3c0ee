"""Which rows share a batch: those of like length, as many as memory bears, and never rows that
would change one another.

Knows lengths and traits. Knows nothing of what is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from safeswitch.models.traits import Traits

BATCH_TOKENS = 32_768
"""Tokens that a batch may come to, unless told otherwise: some gigabytes of cache for a model of 8B
parameters."""


def length_batches(
    lengths: Sequence[int],
    traits: Traits,
    *,
    pass_tokens: int,
    batch_rows: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    reach: int = 0,
) -> list[list[int]]:
    """Row numbers by falling length, in the batches that cost least: tokens with their padding, and
    a price for each pass.

    Rows share a batch with others of their own length only, where the model cannot bear padding, or
    where they may grow beyond the length at which it turns to other rotary frequencies.

    Args:
        lengths: Tokens of each row.
        traits: Of the model.
        pass_tokens: What a pass costs beside its tokens, see :attr:`LanguageModel.pass_tokens`.
        batch_rows: Most rows in a batch.
        batch_tokens: Most tokens that a batch may come to, padding and reach included; a longer row
            runs alone.
        reach: Tokens by which a row may grow while the batch runs, each in a pass of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    falling = [lengths[i] for i in order]
    most = len(order) if batch_rows is None else batch_rows
    cheapest, starts = [0.0], [0]
    for end in range(1, len(order) + 1):
        found = (math.inf, end - 1)
        for start in range(end - 1, max(0, end - most) - 1, -1):
            rows, longest = end - start, falling[start]
            mixed = longest != falling[end - 1] and not mixes(longest + reach, traits)
            if rows > 1 and (mixed or rows * (longest + reach) > batch_tokens):
                break
            cost = cheapest[start] + rows * longest + pass_tokens * (1 + reach)
            if cost < found[0]:
                found = (cost, start)
        cheapest.append(found[0])
        starts.append(found[1])
    return _parts(order, starts)


def _parts(order: Sequence[int], starts: Sequence[int]) -> list[list[int]]:
    """The batches, where the one that ends before row ``end`` starts at ``starts[end]``."""
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(list(order[starts[end] : end]))
        end = starts[end]
    return batches[::-1]


def mixes(length: int, traits: Traits) -> bool:
    """Whether rows that come to ``length`` tokens may be padded into one batch with shorter
    ones."""
    return traits.pads_left and (traits.rope_switch is None or length <= traits.rope_switch)
