"""Bodies by which gateways ask a guard: LiteLLM's Generic Guardrail API, and the webhook of kgateway
and agentgateway.

The contracts are theirs, read in LiteLLM 1.108 and in the webhook's OpenAPI 0.1.0; fields that they
may add say nothing to us and are passed over. Replies of a model are not read: stage 1 reads
requests, and neither contract sends the request with a reply. Knows nothing of engines.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message
from safeswitch.engines.context import ChoiceDecision
from safeswitch.serving.checks.bodies import CheckRequest
from safeswitch.serving.checks.reading import CheckedConversation, ClientView
from safeswitch.serving.checks.tool_results import CODE, without_instructions
from safeswitch.serving.system_text import text_of
from safeswitch.serving.transformers.openai_schema import ChatMessage, not_served

NOT_READ = "SafeSwitch reads requests; replies are not read"


class Foreign(BaseModel):
    """A body whose contract is another project's: fields that are not read may be there."""

    model_config = ConfigDict(extra="ignore")


class ForeignMessage(Foreign):
    """A turn of a conversation, whatever it holds beside text."""

    role: str
    content: str | Annotated[list[object], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[object], Field(fail_fast=True)] | None = None

    @property
    def as_chat(self) -> ChatMessage:
        """The turn as our own routes take it: its text, and the calls of functions in it."""
        roles = {"developer": "system", "function": "tool"}
        role = roles.get(self.role, self.role)
        turn: JsonObject = {"role": role, "content": text_of(self.content)}
        if role == "tool":
            turn["tool_call_id"] = "given"
        calls = []
        for call in self.tool_calls or ():
            function = call.get("function") if isinstance(call, dict) else None
            if role == "assistant" and isinstance(function, dict):
                named = {"name": str(function.get("name") or "tool")}
                calls.append({"function": {**named, "arguments": str(function.get("arguments"))}})
        return ChatMessage.model_validate({**turn, "tool_calls": calls})


Messages = Annotated[list[ForeignMessage], Field(fail_fast=True)]


class Conversation(Foreign):
    """Messages of a gateway, read as ``/v1/checks`` reads them."""

    messages: Messages

    def readings(self) -> list[CheckedConversation]:
        """Nothing, where there is no text in it."""
        return self._check.readings if self.messages else []

    def decide(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """The reply of ``/v1/checks``."""
        return self._check.reply(decisions, view)

    @property
    def _check(self) -> CheckRequest:
        return CheckRequest.model_construct(messages=[one.as_chat for one in self.messages])


class LiteLLMRequest(Foreign):
    """``POST /beta/litellm_basic_guardrail_api``."""

    input_type: str
    structured_messages: Annotated[list[Any], Field(fail_fast=True)] | None = None
    texts: Annotated[list[str], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _requests_alone(self) -> LiteLLMRequest:
        if self.input_type != "request":
            raise not_served("input_type", f"{NOT_READ}; give this guardrail mode: pre_call")
        return self

    @property
    def readings(self) -> list[CheckedConversation]:
        """The conversation where there is one, else each text as if a user had sent it."""
        if self.structured_messages:
            return self._conversation.readings()
        found = []
        for i, text in enumerate(self.texts or ()):
            if text.strip():
                found.append(CheckedConversation((Message("user", text),), f"texts.{i}"))
        return found

    def reply(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """``NONE``, ``BLOCKED`` with a reason, or the messages without the instructions in them."""
        if not self.structured_messages:
            pairs = zip(self.readings, decisions, strict=True)
            refused = any(view.action(*pair) == "refuse" for pair in pairs)
            return _blocked("the request was flagged") if refused else {"action": "NONE"}
        found = self._conversation.decide(decisions, view)
        if found["action"] == "allow":
            return {"action": "NONE"}
        if found["action"] == "refuse":
            return _blocked(reason_of(found))
        flagged = flagged_messages(found)
        payload = {"messages": self.structured_messages}
        changed = without_instructions(payload, flagged, view.tool_results)["messages"]
        texts = list(self.texts or ())
        for i in flagged:
            before = text_of(self.structured_messages[i].get("content"))
            after = text_of(changed[i]["content"])
            texts = [after if text == before else text for text in texts]
        return {"action": "GUARDRAIL_INTERVENED", "texts": texts, "structured_messages": changed}

    @property
    def _conversation(self) -> Conversation:
        return Conversation.model_validate({"messages": self.structured_messages})


class WebhookRequest(Foreign):
    """``POST /request`` of the webhook."""

    body: Conversation

    @property
    def readings(self) -> list[CheckedConversation]:
        """As ``/v1/checks``."""
        return self.body.readings()

    def reply(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """One of the contract's three actions."""
        found = self.body.decide(decisions, view)
        if found["action"] == "allow":
            return {"action": {"reason": "not flagged"}}
        if found["action"] == "refuse":
            reason = reason_of(found)
            return {"action": {"body": reason, "status_code": 403, "reason": reason}}
        turns = []
        for message in self.body.messages:
            turns.append({"role": message.role, "content": text_of(message.content)})
        flagged = flagged_messages(found)
        changed = without_instructions({"messages": turns}, flagged, view.tool_results)
        return {"action": {"body": changed, "reason": CODE}}


class WebhookResponse(Foreign):
    """``POST /response`` of the webhook: a reply, which passes unread."""

    body: object

    @property
    def readings(self) -> list[CheckedConversation]:
        """Nothing."""
        return []

    def reply(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """The contract's pass, with the reason."""
        return {"action": {"reason": NOT_READ}}


def flagged_messages(found: JsonObject) -> list[int]:
    """Numbers of the flagged messages in a reply of ``/v1/checks``."""
    return [entry["index"] for entry in found["messages"] if entry["flagged"]]


def reason_of(found: JsonObject) -> str:
    """What is flagged, in words for the client of a gateway."""
    read_as = {entry["read"] for entry in found["messages"] if entry["flagged"]}
    if read_as == {"tool_result"}:
        return "a tool result in this conversation reads like instructions"
    return "the request was flagged"


def _blocked(reason: str) -> JsonObject:
    return {"action": "BLOCKED", "blocked_reason": f"SafeSwitch: {reason}"}
