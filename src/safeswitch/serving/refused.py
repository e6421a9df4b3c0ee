"""A request that the guard's server answers itself, in OpenAI's shape of an error."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from safeswitch.core.json_types import JsonObject

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


class Refused(Exception):
    """A request that is answered here.

    Args:
        status: HTTP status.
        message: For the client; holds nothing of the server's inside.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``; None gives the status.
        retry_after: Seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.retry_after = status, kind, code, retry_after

    def to_dict(self) -> JsonObject:
        """The body."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": None,
                "code": self.code or self.status,
            }
        }


def named(send: Send, request_id: str) -> Send:
    """``send``, with the request's id among the headers of the reply."""

    async def through(event: Event) -> None:
        if event["type"] == "http.response.start":
            others = [(k, v) for k, v in event.get("headers", ()) if k.lower() != b"x-request-id"]
            event = {**event, "headers": [*others, (b"x-request-id", request_id.encode())]}
        await send(event)

    return through


async def answer(
    send: Send, status: int, content: object, request_id: str, retry_after: int | None = None
) -> None:
    """A whole JSON reply."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refused: Refused, request_id: str) -> None:
    """The reply that says so."""
    await answer(send, refused.status, refused.to_dict(), request_id, refused.retry_after)
