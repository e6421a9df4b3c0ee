"""The contract of an attack, the table of attacks, and what they are aimed at.

An attack turns a request into one or several attacked requests; what comes of them is found out by
the engines, as for any other request. Knows nothing of generation, judges or logs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from safeswitch.core.registry import Registry
from safeswitch.core.types import Example
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate

ATTACKS: Registry[type[Attack]] = Registry("attack", "safeswitch.attacks", "safeswitch.attacks")


@dataclass(frozen=True, eq=False)
class Victim:
    """What a search with gradients looks into: the engine's model, and the gate where one is to be
    evaded."""

    engine: ReadingEngine
    gate: Gate | None = None

    @property
    def lm(self) -> LanguageModel:
        """The model.

        Raises:
            SettingError: an engine that shows none.
        """
        return self.engine.lm


@dataclass(frozen=True)
class Attack(ABC):
    """One published attack. Members are frozen dataclasses whose defaults need no argument.

    ``name`` is for tables and the command line, ``paper`` says where the attack was published, and
    ``white_box`` whether it needs the victim's weights.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    white_box: ClassVar[bool] = False

    @abstractmethod
    def attack(self, example: Example, victim: Victim) -> list[Example]:
        """The attacked forms of ``example``, made with :func:`attacked`; only ``white_box`` ones
        look at ``victim``."""


def attacked(
    example: Example,
    attack: Attack,
    variant: str,
    *,
    meta: Mapping[str, str] | None = None,
    **changes: Any,
) -> Example:
    """``example`` with ``changes`` and an id of its own; ``meta`` tells attack, variant and the id
    of the bare request."""
    facts = {"attack": attack.name, "variant": variant, "attacked": example.id}
    name = f"{example.id}/{attack.name}/{variant}" if variant else f"{example.id}/{attack.name}"
    return replace(example, id=name, meta={**example.meta, **facts, **(meta or {})}, **changes)
