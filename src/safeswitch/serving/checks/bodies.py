"""Bodies of the two routes of our own that read and do not answer.

``/v1/moderations`` has OpenAI's schema: each text is read as if a user had sent it and nothing
else. ``/v1/checks`` takes a conversation as chat completions do. Knows nothing of engines.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message
from safeswitch.data.tool_results import framed
from safeswitch.engines.context import ChoiceDecision
from safeswitch.serving.checks.reading import CheckedConversation, ClientView
from safeswitch.serving.system_text import ROLES
from safeswitch.serving.transformers.openai_schema import (
    ChatMessage,
    Strict,
    Text,
    TextPart,
    Texts,
    not_served,
)

_STRICTEST = ("refuse", "strip", "mark", "allow")
"""Actions, the strictest first."""


class ModerationRequest(Strict):
    """``POST /v1/moderations``."""

    input: (
        Text
        | Annotated[Texts, Field(min_length=1)]
        | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    )
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: object) -> object:
        """Name the form that is at fault, where the schema has three."""
        given = value.get("input") if isinstance(value, dict) else ""
        entries = given if isinstance(given, list) else []
        if any(isinstance(e, dict) and e.get("type") != "text" for e in entries):
            raise not_served("input", "input: only parts of type text are read")
        if not isinstance(given, str | list) or not given:
            raise not_served("input", "input: takes a text, texts, or parts of type text")
        if len({type(entry) for entry in entries}) > 1:
            raise not_served("input", "input: takes texts or parts, not both")
        return value

    @property
    def texts(self) -> list[str]:
        """The texts one by one; parts are one text."""
        if isinstance(self.input, str):
            return [self.input]
        parts = [part.text for part in self.input if isinstance(part, TextPart)]
        if parts:
            return ["\n".join(parts)]
        return [text for text in self.input if isinstance(text, str)]

    @property
    def readings(self) -> list[CheckedConversation]:
        """One for each text."""
        several = len(self.texts) > 1
        found = []
        for i, text in enumerate(self.texts):
            where = f"input.{i}" if several else "input"
            found.append(CheckedConversation((Message("user", text),), where))
        return found

    def reply(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """OpenAI's reply."""
        results = []
        for decided in decisions:
            types = {name: ["text"] for name in view.describe(decided)["categories"]}
            results.append({**view.describe(decided), "category_applied_input_types": types})
        return {"id": view.id, "model": self.model or decisions[0].bundle, "results": results}


def _behind(messages: list[ChatMessage], i: int) -> bool:
    """Whether a turn behind the last user turn is one that a model would follow or go on from."""
    role = messages[i].role
    return role in ROLES or (role == "assistant" and i == len(messages) - 1)


class CheckRequest(Strict):
    """``POST /v1/checks``: a conversation, documents, or both.

    Read are: the conversation up to its last user turn, without tool calls and tool results; behind
    it each system turn and a last assistant turn, by itself; each tool result, each tool call's
    arguments and each document, by itself.
    """

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(default_factory=list)
    documents: Texts = Field(default_factory=list)
    model: str | None = None

    @model_validator(mode="after")
    def _something(self) -> CheckRequest:
        if not self._read:
            raise not_served("messages", "messages: there is nothing to read in this body")
        return self

    @property
    def _read(self) -> list[tuple[JsonObject, CheckedConversation]]:
        """What is read, each with where it stands and as what it is read."""
        found: list[tuple[JsonObject, CheckedConversation]] = []
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=-1)
        for i, message in enumerate(self.messages):
            about = {"index": i, "role": message.role}
            where = f"messages.{i}"
            if i == last:
                turns = plain_turns(self.messages[: i + 1])
                found.append(({**about, "read": "conversation"}, CheckedConversation(turns, where)))
            if i > last and _behind(self.messages, i) and message.text.strip():
                alone = CheckedConversation((Message("user", message.text),), where)
                found.append(({**about, "read": "turn"}, alone))
            if message.role == "tool" and message.text.strip():
                alone = CheckedConversation((framed(message.text),), where, data=True)
                found.append(({**about, "read": "tool_result"}, alone))
            for call in message.tool_calls:
                alone = CheckedConversation((Message("user", call.text),), where)
                found.append(({**about, "read": "tool_call"}, alone))
        for i, text in enumerate(self.documents):
            alone = CheckedConversation((framed(text),), f"documents.{i}", data=True)
            found.append(({"index": i, "read": "document"}, alone))
        return found

    @property
    def readings(self) -> list[CheckedConversation]:
        """What is read, in the order of the body."""
        return [reading for _, reading in self._read]

    def reply(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """What is flagged, where, and the strictest action."""
        messages: list[JsonObject] = []
        documents: list[JsonObject] = []
        actions = {"allow"}
        for (about, reading), decided in zip(self._read, decisions, strict=True):
            (messages if "role" in about else documents).append({**about, **view.describe(decided)})
            actions.add(view.action(reading, decided))
        return {
            "id": view.id,
            "object": "check",
            "flagged": any(decided.decision.fired for decided in decisions),
            "action": next(action for action in _STRICTEST if action in actions),
            "messages": messages,
            "documents": documents,
        }


def plain_turns(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """System, user and assistant turns that say something, as the chat template takes them."""
    turns = []
    for message in messages:
        if message.role != "tool" and (message.text.strip() or message.role == "user"):
            turns.append(Message(message.as_role, message.text))
    return tuple(turns)
