"""A server's response on its way out: decisions are put in, and what must not leave is taken
out."""

from __future__ import annotations

import asyncio
import json
import logging
import time

from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.serving import metrics
from safeswitch.serving.errors import (
    ApiError,
    Event,
    Send,
    internal_error,
    not_recorded,
    send_error,
    send_json,
)
from safeswitch.serving.replies.form import Form

_log = logging.getLogger("safeswitch.server")
_JSON, _STREAM, _DATA, _DONE = "application/json", "text/event-stream", b"data: ", b"[DONE]"
_TEXTS = ("content", "text", "refusal", "reasoning", "reasoning_content", "tool_calls")
"""Fields of a chunk's choice that hold what the model wrote."""


class GuardedResponse:
    """Passes a response on, with the decisions in it.

    Args:
        send: Where it goes.
        form: Of the route's replies.
        request_id: For the header.
        own_errors: Whether the server's errors hold nothing of its inside.
        error_delay: Seconds before an answer that says the client is at fault.
    """

    def __init__(
        self, send: Send, form: Form, request_id: str, own_errors: bool, error_delay: float = 0.0
    ) -> None:
        self._error_delay = error_delay
        self._out, self._form, self._id, self._own_errors = send, form, request_id, own_errors
        self._context = form.context
        self._start: Event | None = None
        self._kind, self._rest, self.begun = "", b"", False
        self._admitted: float | None = time.monotonic()

    async def _send(self, event: Event) -> None:
        self.begun = True
        await self._out(event)

    async def send(self, event: Event) -> None:
        """Stands in for the server's ``send``: holds a JSON body until it is whole, and a stream's
        event until it is."""
        if event["type"] == "http.response.start":
            if 400 <= event["status"] < 500:
                await asyncio.sleep(self._error_delay)
            headers = [(k, v) for k, v in event["headers"] if k.lower() != b"x-request-id"]
            self._kind = next(
                (v.decode() for k, v in headers if k.lower() == b"content-type"), ""
            ).split(";")[0]
            self._start = {**event, "headers": [*headers, (b"x-request-id", self._id.encode())]}
            if self._kind != _JSON:
                await self._send(self._start)
            return
        if event["type"] != "http.response.body" or self._kind not in (_JSON, _STREAM):
            await self._send(event)
            return
        self._rest += event.get("body", b"")
        more = bool(event.get("more_body"))
        if self._kind == _STREAM:
            *whole, self._rest = self._rest.split(b"\n\n")
            done = b"".join(self._event(part + b"\n\n") for part in whole)
            if not more:
                done, self._rest = done + self._event(self._rest), b""
            await self._send({**event, "body": done})
        elif not more and self._start is not None:
            await self._send_whole(self._start, self._rest)

    async def break_off(self, error: ApiError) -> bool:
        """End a stream that the server has broken off, with an event that says so.

        Returns:
            False where what has begun is no stream of events, which cannot be ended so.
        """
        if self._kind != _STREAM:
            return False
        last = b"".join(self._line(event) for event in self._form.rest())
        last += b"event: error\n" if self._form.names_events else b""
        last += _data(self._form.failed(error.to_dict()))
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
        return True

    async def _send_whole(self, start: Event, body: bytes) -> None:
        """A JSON body."""
        status = start["status"]
        if self._context.unrecorded:
            await send_error(self._send, not_recorded(), self._id)
            return
        if status >= 500 and not self._own_errors:
            _log.error(
                "request %s: the server answered %s: %s",
                self._id,
                status,
                body.decode("utf-8", "replace"),
            )
            await send_json(self._send, status, internal_error().to_dict(), self._id)
            return
        if status == 200 and self._context.decisions:
            reply = json.loads(body)
            if isinstance(reply, dict):
                self._form.whole(reply)
                body = json.dumps(reply, ensure_ascii=False).encode()
        headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        await self._send(
            {**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
        )
        await self._send({"type": "http.response.body", "body": body})

    def _event(self, part: bytes) -> bytes:
        """What leaves in the place of one event of a stream, given with the blank line that ends
        it."""
        start = part.find(_DATA)
        if start < 0 or (start > 0 and part[start - 1 : start] != b"\n"):
            return part
        before, data = part[:start], part[start + len(_DATA) :]
        if data.startswith(_DONE):
            return b"".join(self._line(event) for event in self._form.rest()) + part
        try:
            event = json.loads(data)
        except ValueError:
            return part
        if not isinstance(event, dict):
            return part
        if isinstance(event.get("error"), dict):
            return before + _data(self._failed(event["error"]))
        if self._admitted is not None and _holds_text(event):
            metrics.FIRST_TEXT.observe(time.monotonic() - self._admitted)
            self._admitted = None
        return b"".join(
            before + _data(sent) if sent is event else self._line(sent)
            for sent in self._form.event(event)
        )

    def _line(self, event: JsonObject) -> bytes:
        """An event of our own."""
        name = f"event: {event['type']}\n".encode() if self._form.names_events else b""
        return name + _data(event)

    def _failed(self, error: JsonObject) -> JsonObject:
        """An error in the middle of a stream, without the server's inside."""
        code = error.get("code")
        if isinstance(code, int) and 400 <= code < 500:
            return {"error": error}
        _log.error("request %s: its stream ended with %s", self._id, error)
        return self._form.failed(
            (not_recorded() if self._context.unrecorded else internal_error()).to_dict()
        )


def counted(send: Send) -> Send:
    """``send``, which counts the reply by its status."""

    async def through(event: Event) -> None:
        if event["type"] == "http.response.start":
            metrics.RESPONSES.labels(str(event["status"])).inc()
        await send(event)

    return through


def _holds_text(event: JsonMapping) -> bool:
    """Whether an event of a stream brings text; those before it name roles and open blocks."""
    if isinstance(event.get("type"), str):
        return str(event["type"]).endswith("delta")
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or choice
        if any(delta.get(name) for name in _TEXTS):
            return True
    return False


def _data(event: JsonObject) -> bytes:
    return _DATA + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
