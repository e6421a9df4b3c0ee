"""Replies of Anthropic's ``/v1/messages``."""

from __future__ import annotations

from typing import Any

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import Refusal
from safeswitch.serving.replies.form import FIELD, Form, add_tokens

Event = JsonObject


class Messages(Form):
    """The message carries the decision, in streams the event ``message_delta``; a refusal ends with
    ``stop_reason: refusal``.

    Its text is a block of its own, and the explanation in ``stop_details``. Where the client asked
    for a format there is only the explanation: Anthropic's client reads every block of text as that
    format.
    """

    names_events = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._blocks = 0

    def whole(self, reply: JsonObject) -> None:
        refusal = self.last_refusal()
        if refusal is not None:
            reply |= {"content": self._content(refusal), **_stop(refusal)}
            add_tokens(reply.get("usage"), "output_tokens", refusal.tokens)
        self._add_decision(reply)

    def event(self, event: Event) -> list[Event]:
        """The events that leave in place of this one: a refusal's block goes in front of the one
        that ends the message."""
        if event.get("type") == "content_block_start":
            self._blocks += 1
        if event.get("type") != "message_delta":
            return [event]
        refusal, sent = self.last_refusal(), []
        if refusal is not None:
            for block in self._content(refusal):
                sent += _events(block, self._blocks)
            event["delta"] = {**(event.get("delta") or {}), **_stop(refusal)}
            add_tokens(event.get("usage"), "output_tokens", refusal.tokens)
        self._add_decision(event)
        return [*sent, event]

    def failed(self, error: JsonObject) -> JsonObject:
        cause = error["error"]
        return {"type": "error", "error": {"type": cause["type"], "message": cause["message"]}}

    def _add_decision(self, reply: JsonObject) -> None:
        decided = self.last_decision()
        if decided is not None:
            reply[FIELD] = self.describe(decided)

    def _content(self, refusal: Refusal) -> list[JsonObject]:
        return [] if self.context.formatted else [{"type": "text", "text": refusal.text}]


def _stop(refusal: Refusal) -> JsonObject:
    details = {"type": "refusal", "category": None, "explanation": refusal.text}
    return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}


def _events(block: JsonObject, index: int) -> list[Event]:
    """The events of a stream that add a block of text."""
    delta = {"type": "text_delta", "text": block["text"]}
    return [
        {"type": "content_block_start", "index": index, "content_block": {**block, "text": ""}},
        {"type": "content_block_delta", "index": index, "delta": delta},
        {"type": "content_block_stop", "index": index},
    ]
