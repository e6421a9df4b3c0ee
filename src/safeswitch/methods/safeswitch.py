"""``safeswitch``: two probers decide, a refusal head acts on the requests that need it (arXiv 2502.01042).

And ``head``, its always-on ablation: the same refusal head on every request, the paper's "Refusal Head" baseline. Knows
nothing of engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from safeswitch.core.types import Example
from safeswitch.methods.base import METHODS, Method
from safeswitch.switch.fit_data import Generating
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


@METHODS.add("safeswitch")
@dataclass(frozen=True)
class SafeSwitch(Method):
    """Prober-gated refusal head."""

    name: ClassVar[str] = "safeswitch"

    def prepare(self, engine: Generating, data: Mapping[str, Sequence[Example]]) -> Switch:
        """Fit gate and head."""
        return Switch.fit(engine, data, self.settings, complied=self.complied)


@METHODS.add("head")
@dataclass(frozen=True)
class AlwaysHead(Method):
    """The refusal head on every request.

    Args:
        fitted: A fitted SafeSwitch whose head is reused, so that both run the same head; None fits one.
    """

    fitted: Switch | None = None
    name: ClassVar[str] = "head"

    def prepare(self, engine: Generating, data: Mapping[str, Sequence[Example]]) -> Switch:
        """The fitted head under a gate that always fires."""
        switch = self.fitted or Switch.fit(engine, data, self.settings, complied=self.complied)
        return replace(switch, gate=Gate(always=True))
