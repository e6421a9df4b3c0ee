"""What both engines make of a call's arguments: a reply length and a seed for each prompt, and
which conversations end in a prefill."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Message


def row_limits(max_new_tokens: int | Sequence[int], count: int) -> list[int]:
    """Most reply tokens of each of ``count`` prompts: the same for all, or as listed.

    Raises:
        SettingError: a list of another length.
    """
    if not isinstance(max_new_tokens, Sequence):
        return [int(max_new_tokens)] * count
    if len(max_new_tokens) != count:
        raise SettingError(f"generate: {count} prompts but {len(max_new_tokens)} max_new_tokens")
    return list(max_new_tokens)


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


def ends_in_prefill(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends in a reply that the client has begun, behind something else."""
    return len(messages) > 1 and messages[-1].role == "assistant"
