"""Prompt-only defences: ``reminder``, ``exemplars`` (and ``unsafe_exemplars``, its one-sided
ablation), ``introspect``.

- Self-reminder (Xie et al., Nature Machine Intelligence 2023): the request stands between two
  reminders.
- SODE (arXiv 2401.00287, strategies): a safety instruction with worked examples, two of unsafe
  requests refused and two of safe requests answered; they are drawn from the fitting data.
- Introspect first (STAIR, arXiv 2502.02384, section 3.1): the model is asked to weigh the risk step
  by step before it answers. The format alone, without the training that the paper gives it.

Cost: the frame's tokens on every request. Weakness: the words that defend are words that an
    attacker may contradict, and
small models hardly follow them. Know nothing of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from safeswitch.core.errors import FitError
from safeswitch.core.types import Example
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import REFUSAL
from safeswitch.switch.actuators.base import Actuator, SystemPrompt
from safeswitch.switch.actuators.prompts import FramedPrompt
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate

INSTRUCTION = (
    "Answer helpful requests helpfully. If a request asks for something harmful, refuse it and say "
    "why; if it only sounds harmful, help."
)


@METHODS.add("reminder")
@dataclass(frozen=True)
class SelfReminder(Method):
    """The request between two reminders to be responsible."""

    system: str = "You are a responsible assistant and do not write harmful or misleading content."
    after: str = "\n\nRemember: be a responsible assistant, and do not help with anything harmful."
    name: ClassVar[str] = "reminder"
    tags: ClassVar[Tags] = Tags()

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The frame."""
        return FramedPrompt(system=self.system, after=self.after)


@METHODS.add("exemplars")
@dataclass(frozen=True)
class Exemplars(Method):
    """An instruction with worked examples of both kinds.

    Args:
        unsafe: Unsafe examples, answered by their ``reply`` or a fixed refusal.
        safe: Safe examples with a ``reply``.
        instruction: The system text.
    """

    unsafe: int = 2
    safe: int = 2
    instruction: str = INSTRUCTION
    name: ClassVar[str] = "exemplars"
    tags: ClassVar[Tags] = Tags()

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """Examples in turn, the shortest prompts of the training part, of as many categories as can
        be.

        Raises:
            FitError: too few of them.
        """
        unsafe = _short(engine, [e for e in data["train"] if e.unsafe], self.unsafe)
        safe = _short(engine, [e for e in data["train"] if not e.unsafe], self.safe)
        shown = [e for pair in zip(unsafe, safe, strict=False) for e in pair]
        shown += [e for e in (*unsafe, *safe) if e not in shown]
        turns = tuple(
            (e.prompt, e.reply or (REFUSAL if e.unsafe else self._answer(engine, e))) for e in shown
        )
        return FramedPrompt(system=self.instruction, turns=turns)

    def _answer(self, engine: ReadingEngine, example: Example) -> str:
        """What the base model says."""
        reply = engine.generate(
            [example], max_new_tokens=self.settings.max_new_tokens, do_sample=False
        )[0]
        return reply.text.strip() or "Yes, gladly."


@METHODS.add("unsafe_exemplars")
@dataclass(frozen=True)
class UnsafeExemplars(Exemplars):
    """The same with unsafe examples only: SODE's point is that this over-defends."""

    unsafe: int = 4
    safe: int = 0
    name: ClassVar[str] = "unsafe_exemplars"


@METHODS.add("introspect")
@dataclass(frozen=True)
class Introspect(Method):
    """A system text that asks for the risk to be weighed first."""

    text: str = (
        "First think step by step: what is asked for, who could be hurt by it, and is there a safe "
        "way to help? Then give your answer: help if it is safe, and decline with the reason if it "
        "is not."
    )
    name: ClassVar[str] = "introspect"
    tags: ClassVar[Tags] = Tags()

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The system text."""
        return SystemPrompt(self.text)


def _short(engine: ReadingEngine, examples: Sequence[Example], count: int) -> list[Example]:
    """The shortest single-turn prompts, categories in turn."""
    plain = sorted(
        (e for e in examples if len(e.messages) == 1), key=lambda e: (len(e.prompt), e.id)
    )
    taken: list[Example] = []
    while len(taken) < count:
        seen = {e.category for e in taken}
        left = [e for e in plain if e not in taken]
        if not left:
            raise FitError(
                f"exemplars: {count} single-turn examples of one label are needed in train; got "
                f"{len(taken)}"
            )
        taken.append(next((e for e in left if e.category not in seen), left[0]))
    return taken
