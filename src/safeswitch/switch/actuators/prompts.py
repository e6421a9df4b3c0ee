"""Prompt edits beyond a system text. Knows nothing of gates or models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Message
from safeswitch.switch.actuators.base import ACTUATORS, PromptActuator, SystemPrompt


@ACTUATORS.add("framed_prompt")
@dataclass(frozen=True, eq=False)
class FramedPrompt(PromptActuator):
    """A frame around the conversation: a system text, example turns before it, text around the last
    user turn.

    Args:
        system: Put in front as, or joined to, the system message; may be empty.
        turns: ``(user, assistant)`` pairs that go before the conversation's first turn.
        before: Put before the last user turn's text.
        after: Put behind it.
    """

    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    before: str = ""
    after: str = ""
    kind: ClassVar[str] = "framed_prompt"

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple((user, reply) for user, reply in self.turns))
        if not (self.system.strip() or self.turns or self.before or self.after):
            raise SettingError(
                "FramedPrompt: nothing is added; give system, turns, before or after"
            )

    def edit(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation in its frame."""
        edited = SystemPrompt(self.system).edit(messages) if self.system.strip() else messages
        start = int(edited[0].role == "system")
        shown = [
            m
            for user, reply in self.turns
            for m in (Message("user", user), Message("assistant", reply))
        ]
        last = max((i for i, m in enumerate(edited) if m.role == "user"), default=-1)
        framed = [
            m.around(self.before, self.after) if i == last else m for i, m in enumerate(edited)
        ]
        return (*framed[:start], *shown, *framed[start:])
