"""Other ways to use the refusal head: ``interpolate``, ``soft``, ``safedecoding``.

- ``interpolate``: ``W(beta) = (1 - beta) W + beta W_ref`` on every request, beta chosen on
  validation. Weight merging of an adapted and a safety-tuned model (arXiv 2410.07571, section 5),
  applied to the head.
- ``soft``: beta rises with stage 1's score, 0 at the threshold of five times the budget, 1 at that
  of the budget.
- ``safedecoding``: base and refusal head mixed on the first two reply tokens, ``p + alpha (p_ref -
  p)`` with alpha 3 over a common space of five tokens (SafeDecoding, arXiv 2402.08983, section 4;
  its expert is a fine-tuned copy of the model).

Weakness: a soft head writes neither reply well in between; early mixing ends after two tokens, and
    a reply can turn back.
Know nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from safeswitch.core.errors import FitError
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import best, calm, fitted_switch, prompt_activations
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.switch.actuators.base import Actuator, FullHead, HeadActuator, LowRankHead
from safeswitch.switch.actuators.heads import EarlyHead, SoftHead
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate, Stage


@dataclass(frozen=True)
class _OfFittedHead(Method):
    """A method that takes SafeSwitch's fitted head."""

    def head(self, engine: ReadingEngine, data: Data) -> HeadActuator:
        found = fitted_switch(engine, data, self.settings, self.complied).actuator.head
        assert found is not None
        return found


@METHODS.add("interpolate")
@dataclass(frozen=True)
class Interpolated(_OfFittedHead):
    """A fraction of the refusal head on every request.

    Args:
        betas: Shares that are tried.
    """

    betas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    name: ClassVar[str] = "interpolate"
    tags: ClassVar[Tags] = Tags(engines=("transformers", "vllm"), trains=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The best fraction."""
        head = self.head(engine, data)
        assert isinstance(
            head, LowRankHead | FullHead
        )  # the two that a fit makes, and that have a beta
        return best(
            engine,
            gate,
            [replace(head, beta=b) for b in self.betas],
            data,
            self.complied,
            self.settings,
        )


@METHODS.add("soft")
@dataclass(frozen=True)
class Soft(_OfFittedHead):
    """A fraction of the refusal head that rises with the score.

    Args:
        wider: Multiple of the budget at whose threshold the fraction begins to rise.
    """

    wider: float = 5.0
    name: ClassVar[str] = "soft"
    tags: ClassVar[Tags] = Tags(trains=True, conditional=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """SafeSwitch's stage 1, and its watch, at the lower threshold."""
        fitted = fitted_switch(engine, data, self.settings, self.complied).gate
        if fitted.stage1 is None:
            raise FitError("soft: needs a stage 1; settings.stages must not be 'direct'")
        low, _ = self._bars(engine, data, fitted)
        return replace(fitted, stage1=Stage(fitted.stage1.prober, low), stage2=None, rule="and")

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The head between the two thresholds of ``gate``'s stage 1; the whole head under a gate
        without one."""
        head = self.head(engine, data)
        if gate.stage1 is None:
            return head
        low, high = self._bars(engine, data, gate)
        return SoftHead(head, low, high)

    def _bars(self, engine: ReadingEngine, data: Data, gate: Gate) -> tuple[float, float]:
        assert gate.stage1 is not None
        prober = gate.stage1.prober
        scores = prober.score(prompt_activations(engine.lm, calm(data), prober))
        budget = self.settings.stage_budget
        high = conformal_threshold(scores, budget).value
        low = conformal_threshold(scores, min(0.5, self.wider * budget)).value
        return min(low, high - 1e-6), high


@METHODS.add("safedecoding")
@dataclass(frozen=True)
class SafeDecoding(_OfFittedHead):
    """The refusal head on the first tokens, on every request.

    Args:
        tokens: Reply tokens that are mixed (the paper's m).
        alpha: Weight of the refusal head (its alpha).
        common: Size of the common sample space (its c).
    """

    tokens: int = 2
    alpha: float = 3.0
    common: int = 5
    name: ClassVar[str] = "safedecoding"
    tags: ClassVar[Tags] = Tags(trains=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The early head."""
        return EarlyHead(self.head(engine, data), self.tokens, self.alpha, self.common)
