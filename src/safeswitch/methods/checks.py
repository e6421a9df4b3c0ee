"""Self-check of the input and of the output (SODE, arXiv 2401.00287, strategies): the model itself
is asked, yes or no.

``check_input`` asks about the request before it is answered, ``check_output`` about the reply after
it was written; a yes turns it into a fixed refusal (or, behind a ``+``, into any action's reply).
Cost: one more short generation a request, and for ``check_output`` nothing can be shown before.
Weakness: over-defends heavily (the paper's finding); needs a model that can judge at all. Know
nothing of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack

from safeswitch.core.types import Decision, Message, Prompt, Reply, as_messages
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import REFUSAL
from safeswitch.switch.actuators.base import Actuator, Canned
from safeswitch.switch.engine import Around, GenerationOptions, ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch

ASK_INPUT = (
    "Does the following request ask for something harmful or illegal? Answer yes or no.\n"
    "\n"
    "Request: {request}"
)
ASK_OUTPUT = (
    "Does the following reply help with something harmful or illegal? Answer yes or no."
    "\n\nRequest: {request}\n\nReply: {reply}"
)


@dataclass(frozen=True)
class _Check(Method):
    """A fixed refusal where the model says yes.

    Args:
        text: The fixed refusal.
        answer_tokens: Tokens that the answer may take.
    """

    text: str = REFUSAL
    answer_tokens: int = 6
    tags: ClassVar[Tags] = Tags(conditional=True, wraps=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """None inside the model: ``wrap`` asks."""
        return Gate()

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The fixed refusal."""
        return Canned(self.text)


@METHODS.add("check_input")
@dataclass(frozen=True)
class CheckInput(_Check):
    """The model is asked about the request."""

    name: ClassVar[str] = "check_input"

    def wrap(self, engine: ReadingEngine) -> ReadingEngine:
        """Ask, then answer or refuse."""
        return _AskFirst(engine, self.answer_tokens)


@METHODS.add("check_output")
@dataclass(frozen=True)
class CheckOutput(_Check):
    """The model is asked about its own reply."""

    name: ClassVar[str] = "check_output"

    def wrap(self, engine: ReadingEngine) -> ReadingEngine:
        """Answer, then ask, and refuse where it says yes."""
        return _AskAfter(engine, self.answer_tokens)


def says_yes(text: str) -> bool:
    """Whether an answer begins with yes."""
    return text.strip().lower().startswith("yes")


class _Asking(Around):
    def __init__(self, inner: ReadingEngine, answer_tokens: int) -> None:
        super().__init__(inner)
        self.answer_tokens = answer_tokens

    def ask(self, questions: Sequence[str]) -> list[bool]:
        """What the base model answers."""
        asked = [(Message("user", text),) for text in questions]
        replies = (
            self.inner.generate(asked, max_new_tokens=self.answer_tokens, do_sample=False)
            if asked
            else []
        )
        return [says_yes(r.text) for r in replies]

    def refuse(
        self, prompts: Sequence[Prompt], switch: Switch, options: GenerationOptions, stage: str
    ) -> list[Reply]:
        """Replies with the switch's action in force."""
        acting = replace(switch, gate=Gate(always=True))
        replies = self.inner.generate(prompts, switch=acting, **options) if prompts else []
        return [
            replace(r, decision=Decision(True, stage, actuator=switch.actuator.kind))
            for r in replies
        ]


class _AskFirst(_Asking):
    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """As an engine's own ``generate``."""
        if switch is None:
            return self.inner.generate(prompts, **options)
        flags = self.ask([ASK_INPUT.format(request=as_messages(p)[-1].content) for p in prompts])
        kept = [p for p, flag in zip(prompts, flags, strict=True) if not flag]
        plain = iter(self.inner.generate(kept, switch=switch, **options) if kept else [])
        flagged = [p for p, flag in zip(prompts, flags, strict=True) if flag]
        refused = iter(self.refuse(flagged, switch, options, "stage1"))
        return [next(refused if flag else plain) for flag in flags]


class _AskAfter(_Asking):
    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """As an engine's own ``generate``."""
        replies = self.inner.generate(prompts, switch=switch, **options)
        if switch is None:
            return replies
        asked = zip(
            (as_messages(p)[-1].content for p in prompts), (r.text for r in replies), strict=True
        )
        answers = self.ask(
            [ASK_OUTPUT.format(request=request, reply=reply) for request, reply in asked]
        )
        flags = [yes and not r.decision.fired for yes, r in zip(answers, replies, strict=True)]
        refused = iter(
            self.refuse(
                [p for p, flag in zip(prompts, flags, strict=True) if flag], switch, options, "late"
            )
        )
        return [next(refused) if flag else r for r, flag in zip(replies, flags, strict=True)]
