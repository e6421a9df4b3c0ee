"""What every engine offers: prompts and a switch in, replies with decisions out.

Knows nothing of how a back end computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Prompt, Reply
from safeswitch.switch.switch import Switch


class Engine(ABC):
    """Runs prompts through a model under a switch."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], switch: Switch | None = None, **options: Any) -> list[Reply]:
        """One reply per prompt, in order; without a switch the untouched model answers.

        Args:
            prompts: Texts, message lists or examples.
            switch: What to read, how to decide, what to do.
            options: ``max_new_tokens``, ``do_sample``, ``temperature``, ``seed`` and what else the back end takes.
        """


def row_seeds(seed: Any, count: int) -> list[int | None]:
    """One seed a prompt: counted on from a whole number of any kind, or as listed.

    Raises:
        SettingError: a list of another length.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, Integral):
        return [int(seed) + i for i in range(count)]
    if len(seed) != count:
        raise SettingError(f"generate: {count} prompts but {len(seed)} seeds")
    return [int(s) for s in seed]
