"""``safeswitch``: two probers decide, a refusal head acts on the requests that need it
(arXiv 2502.01042).

And ``head``, its always-on ablation: the same refusal head on every request, the paper's "Refusal
Head" baseline. Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import fitted_switch
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


@METHODS.add("safeswitch")
@dataclass(frozen=True)
class SafeSwitch(Method):
    """Prober-gated refusal head.

    Weakness: over-refuses look-alikes whose words are foreign to its calibration; a white-box
        attacker can silence it.
    """

    name: ClassVar[str] = "safeswitch"
    tags: ClassVar[Tags] = Tags(engines=("transformers", "vllm"), trains=True, conditional=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """The fitted gate."""
        return self.prepare(engine, data).gate

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The fitted head."""
        return self.prepare(engine, data).actuator

    def prepare(self, engine: ReadingEngine, data: Data) -> Switch:
        """Fit gate and head."""
        return fitted_switch(engine, data, self.settings, self.complied)


@METHODS.add("head")
@dataclass(frozen=True)
class AlwaysHead(Method):
    """The refusal head on every request.

    Args:
        fitted: A fitted SafeSwitch whose head is reused, so that both run the same head; None fits
            one.
    """

    fitted: Switch | None = None
    name: ClassVar[str] = "head"
    tags: ClassVar[Tags] = Tags(engines=("transformers", "vllm"), trains=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The fitted head."""
        switch = self.fitted or fitted_switch(engine, data, self.settings, self.complied)
        return switch.actuator

    def prepare(self, engine: ReadingEngine, data: Data) -> Switch:
        """The fitted head under a gate that always fires."""
        switch = self.fitted or fitted_switch(engine, data, self.settings, self.complied)
        return replace(switch, gate=Gate(always=True))
