"""Replies of ``/v1/responses``."""

from __future__ import annotations

import uuid
from typing import Any

from safeswitch.engines.context import Refusal
from safeswitch.serving.replies.form import FIELD, Form, add_tokens

Event = dict[str, Any]


class Responses(Form):
    """The response carries the verdict, in streams the one in ``response.completed``; a refusal is a message of its own.

    Its only content is a part of type ``refusal``, and the response's status is ``completed``.
    """

    names_events = True

    def whole(self, reply: dict[str, Any]) -> None:
        refusal = self.last_refusal()
        if refusal is not None:
            self._refuse(reply, refusal, [], _message(refusal))
        self._tell(reply)

    def event(self, event: Event) -> list[Event]:
        if event.get("type") != "response.completed":
            return [event]
        response, refusal = event["response"], self.last_refusal()
        sent: list[Event] = []
        if refusal is not None:
            said, message = response.get("output") or [], _message(refusal)
            sent = _events(message, len(said), int(event["sequence_number"]))
            event["sequence_number"] += len(sent)
            self._refuse(response, refusal, said, message)
        self._tell(response)
        return [*sent, event]

    def _tell(self, response: dict[str, Any]) -> None:
        verdict = self.last_verdict()
        if verdict is not None:
            response[FIELD] = self.told(verdict)

    def _refuse(self, response: dict[str, Any], refusal: Refusal, said: list[Any], message: dict[str, Any]) -> None:
        """Make a response one that ends with a refusal, behind what was ``said`` before it."""
        response |= {"status": "completed", "incomplete_details": None, "output": [*said, message]}
        add_tokens(response.get("usage"), "output_tokens", refusal.tokens)


def _message(refusal: Refusal) -> dict[str, Any]:
    part = {"type": "refusal", "refusal": refusal.text}
    return {
        "id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "completed", "content": [part],
    }


def _events(message: dict[str, Any], index: int, number: int) -> list[Event]:
    """The events of a stream that add ``message`` at ``index`` of the output, numbered from ``number``."""
    (part,) = message["content"]
    item: Event = {"output_index": index}
    inside: Event = {"item_id": message["id"], "output_index": index, "content_index": 0}
    opened = {**message, "status": "in_progress", "content": []}
    events: list[Event] = [
        {"type": "response.output_item.added", **item, "item": opened},
        {"type": "response.content_part.added", **inside, "part": {**part, "refusal": ""}},
        {"type": "response.refusal.delta", **inside, "delta": part["refusal"]},
        {"type": "response.refusal.done", **inside, "refusal": part["refusal"]},
        {"type": "response.content_part.done", **inside, "part": part},
        {"type": "response.output_item.done", **item, "item": message},
    ]
    return [{**event, "sequence_number": number + i} for i, event in enumerate(events)]
