"""Which rows may share a batch: rows of like length together, and never rows that would change one another.

Knows lengths and traits. Knows nothing of what is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from safeswitch.models.traits import Traits


def length_batches(
    lengths: Sequence[int],
    traits: Traits,
    *,
    batch_rows: int | None = None,
    batch_tokens: int | None = None,
    reach: int = 0,
) -> Iterator[list[int]]:
    """Row numbers by falling length, as many together as fit.

    Rows share a batch with others of their own length only, where the model cannot bear padding, or where they may grow
    beyond the length at which it turns to other rotary frequencies.

    Args:
        lengths: Tokens of each row.
        traits: Of the model.
        batch_rows: Most rows in a batch.
        batch_tokens: Most tokens in a batch, padding included; a longer row runs alone.
        reach: Tokens by which a row may grow while the batch runs.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch:
            longest = lengths[batch[0]]
            differs = lengths[i] != longest and not mixes(longest + reach, traits)
            full = len(batch) == batch_rows or (batch_tokens is not None and (len(batch) + 1) * longest > batch_tokens)
            if differs or full:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def mixes(length: int, traits: Traits) -> bool:
    """Whether rows that come to ``length`` tokens may be padded into one batch with shorter ones."""
    return traits.pads_left and (traits.rope_switch is None or length <= traits.rope_switch)
