"""Sampling seeds, one a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from safeswitch.core.errors import SettingError


def row_seeds(seed: int | Sequence[int] | None, count: int) -> list[int | None]:
    """One seed a prompt: counted on from a whole number of any kind, or as listed.

    Raises:
        SettingError: a list of another length.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, (int, Integral)):
        return [int(seed) + i for i in range(count)]
    if len(seed) != count:
        raise SettingError(f"generate: {count} prompts but {len(seed)} seeds")
    return [int(s) for s in seed]
