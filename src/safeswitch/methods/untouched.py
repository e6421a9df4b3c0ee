"""Baseline ``base``: the untouched model. Knows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from safeswitch.core.types import Example
from safeswitch.methods.base import METHODS, Method
from safeswitch.switch.actuators import NoAction
from safeswitch.switch.fit_data import Generating
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


@METHODS.add("base")
@dataclass(frozen=True)
class Untouched(Method):
    """No gate and no action."""

    name: ClassVar[str] = "base"

    def prepare(self, engine: Generating, data: Mapping[str, Sequence[Example]]) -> Switch:
        """A switch that never fires."""
        return Switch(Gate(), NoAction())
