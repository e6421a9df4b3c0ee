"""A scripted engine for tests and documentation: replies from a table, decisions from a rule.

Knows nothing of models. ``calls`` records what it was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Prompt, Reply, as_messages
from safeswitch.switch.engine import Engine, GenerationOptions
from safeswitch.switch.switch import Switch


class MockEngine(Engine):
    """Answers with ``answer(text)``; where ``unsafe(text)`` holds and a switch is given, with
    ``refusal`` instead.

    Args:
        answer: Text of the last user turn to reply text.
        unsafe: Text of the last user turn to whether the gate fires.
        refusal: Reply of the refusal head.
    """

    def __init__(
        self,
        answer: Callable[[str], str] = lambda text: f"You said: {text}",
        unsafe: Callable[[str], bool] = lambda text: False,
        refusal: str = "I can't help with that.",
    ) -> None:
        self.answer = answer
        self.unsafe = unsafe
        self.refusal = refusal
        self.calls: list[tuple[tuple[str, ...], JsonObject]] = []

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        texts = tuple(_last_user_turn(prompt) for prompt in prompts)
        self.calls.append((texts, dict(options)))
        return [self._reply(text, switch) for text in texts]

    def _reply(self, text: str, switch: Switch | None) -> Reply:
        fired = switch is not None and self.unsafe(text)
        words = self.refusal if fired else self.answer(text)
        decision = Decision(
            fired=fired,
            stage="stage1" if fired else "none",
            actuator=switch.actuator.kind if switch is not None and fired else "none",
        )
        return Reply(words, tuple(range(len(words.split()))), "stop", decision, len(text.split()))


def _last_user_turn(prompt: Prompt) -> str:
    return [message.content for message in as_messages(prompt) if message.role == "user"][-1]
