"""Baseline ``base``: the base model. Knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.switch.actuators.base import Actuator, NoAction
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate


@METHODS.add("base")
@dataclass(frozen=True)
class Untouched(Method):
    """No gate and no action."""

    name: ClassVar[str] = "base"
    tags: ClassVar[Tags] = Tags(engines=("transformers", "vllm"), conditional=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """One that never fires."""
        return Gate()

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """None."""
        return NoAction()
