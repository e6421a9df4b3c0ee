"""Errors that the guard's server answers by itself, in OpenAI's shape, and how an answer is sent.

Knows nothing of engines or HTTP frameworks.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import takewhile
from typing import Any

from safeswitch.core.json_types import JsonMapping, JsonObject

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: For the client; holds nothing of the server's inside.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``; None gives the status.
        param: The field at fault, where there is one.
        retry_after: Seconds after which the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def to_dict(self) -> JsonObject:
        """The body."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code or self.status,
            }
        }


def busy() -> ApiError:
    """Too many requests wait."""
    return ApiError(
        429,
        "too many requests are waiting; try again later",
        "server_error",
        code="overloaded",
        retry_after=1,
    )


def ending() -> ApiError:
    """The server is about to end."""
    return ApiError(503, "the server is shutting down", "server_error", retry_after=1)


def internal_error() -> ApiError:
    """Something went wrong in the server; what it was stays in the log."""
    return ApiError(500, "the server could not answer this request", "server_error")


def not_recorded() -> ApiError:
    """The decision on a reply cannot be kept, so the reply must not leave."""
    message = "decisions cannot be recorded at the moment; try again later"
    return ApiError(503, message, "server_error")


def body_fault(faults: Sequence[JsonMapping]) -> ApiError:
    """The first of pydantic's faults of a body, with the field that has it."""
    fault = faults[0]
    named = [str(part) for part in fault["loc"] if part != "body"]
    # behind these the path goes on with the forms that the field may have
    if named[:1] in (["prompt"], ["stop"], ["input"]):
        named = list(takewhile(str.isidentifier, named))
    if fault["type"] == "not_served":
        return ApiError(400, str(fault["msg"]), param=".".join([*named, fault["ctx"]["field"]]))
    if fault["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    reason = "not served" if fault["type"] == "extra_forbidden" else str(fault["msg"])
    path = ".".join(named)
    return ApiError(400, f"{path}: {reason}" if path else reason, param=path or None)


def with_request_id(send: Send, request_id: str) -> Send:
    """``send``, with the request's id among the headers of the reply."""

    async def through(event: Event) -> None:
        if event["type"] == "http.response.start":
            others = [(k, v) for k, v in event.get("headers", ()) if k.lower() != b"x-request-id"]
            event = {**event, "headers": [*others, (b"x-request-id", request_id.encode())]}
        await send(event)

    return through


async def send_json(
    send: Send, status: int, content: object, request_id: str, retry_after: int | None = None
) -> None:
    """Answer with a whole JSON body."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, request_id: str) -> None:
    """Answer with an error."""
    await send_json(send, error.status, error.to_dict(), request_id, error.retry_after)
