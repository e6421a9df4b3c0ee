"""A conversation with tools in it, for a model that is told of none.

What a tool was called with follows the assistant's text in lines of its own; what it returned comes
as a turn of the user's. Templates want turns to alternate, so neighbours of one role are one turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeswitch.core.types import Message
from safeswitch.data.tool_results import framed
from safeswitch.serving.transformers.openai_schema import ChatMessage


def turns_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The turns as the chat template takes them; those without tools as they came."""
    turns: list[Message] = []
    before = ""
    for message in messages:
        turn = _turn(message)
        beside_tool = "tool" in (message.role, before)
        if beside_tool and turns and turns[-1].role == turn.role:
            turns[-1] = turns[-1].around(after=f"\n\n{turn.content}")
        else:
            turns.append(turn)
        before = message.role
    return turns


def _turn(message: ChatMessage) -> Message:
    if message.role == "tool":
        return framed(message.text)
    lines = [message.text] if message.text else []
    for call in message.tool_calls:
        lines.append(call.text)
    return Message(message.as_role, "\n".join(lines))
