"""Replies of ``/v1/responses``."""

from __future__ import annotations

import uuid
from typing import Any

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import Refusal
from safeswitch.serving.replies.form import FIELD, Form, add_tokens

Event = JsonObject


class Responses(Form):
    """The response carries the decision, in streams the one in ``response.completed``; a refusal is
    a message of its own.

    Its only content is a part of type ``refusal``, and the response's status is ``completed``. Of a
    parsed reply nothing stands before a refusal; what vLLM makes of the empty output (a call of the
    tool that the client has named, say) is left out.
    """

    names_events = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sent = 0

    def whole(self, reply: JsonObject) -> None:
        refusal = self.last_refusal()
        if refusal is not None:
            self._refuse(reply, refusal, [], _message(refusal))
        self._add_decision(reply)

    def event(self, event: Event) -> list[Event]:
        alone = self.context.structured and bool(self.context.refusals)
        if event.get("type") != "response.completed":
            return [] if alone and "response" not in event else self._numbered([event])
        response, refusal = event["response"], self.last_refusal()
        sent: list[Event] = []
        if refusal is not None:
            said, message = [] if alone else response.get("output") or [], _message(refusal)
            sent = _events(message, len(said))
            self._refuse(response, refusal, said, message)
        self._add_decision(response)
        return self._numbered([*sent, event])

    def _numbered(self, events: list[Event]) -> list[Event]:
        for event in events:
            event["sequence_number"] = self._sent
            self._sent += 1
        return events

    def _add_decision(self, response: JsonObject) -> None:
        decided = self.last_decision()
        if decided is not None:
            response[FIELD] = self.describe(decided)

    def _refuse(
        self, response: JsonObject, refusal: Refusal, said: list[Any], message: JsonObject
    ) -> None:
        """Make a response one that ends with a refusal, behind what was ``said`` before it."""
        response |= {"status": "completed", "incomplete_details": None, "output": [*said, message]}
        add_tokens(response.get("usage"), "output_tokens", refusal.tokens)


def _message(refusal: Refusal) -> JsonObject:
    part = {"type": "refusal", "refusal": refusal.text}
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def _events(message: JsonObject, index: int) -> list[Event]:
    """The events of a stream that add ``message`` at ``index`` of the output."""
    (part,) = message["content"]
    item: Event = {"output_index": index}
    inside: Event = {"item_id": message["id"], "output_index": index, "content_index": 0}
    opened = {**message, "status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", **item, "item": opened},
        {"type": "response.content_part.added", **inside, "part": {**part, "refusal": ""}},
        {"type": "response.refusal.delta", **inside, "delta": part["refusal"]},
        {"type": "response.refusal.done", **inside, "refusal": part["refusal"]},
        {"type": "response.content_part.done", **inside, "part": part},
        {"type": "response.output_item.done", **item, "item": message},
    ]
