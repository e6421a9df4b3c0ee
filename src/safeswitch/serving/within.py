"""A request that a server puts to itself, past its own door: another route does the work.

Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Scope

from safeswitch.core.json_types import JsonMapping
from safeswitch.serving.errors import ApiError, Event, internal_error


async def ask_within(app: ASGIApp, scope: Scope, path: str, payload: JsonMapping) -> bytes:
    """The body of the reply to ``POST path``, in the context of the caller.

    Args:
        app: The ASGI application behind the middleware.
        scope: Of the request that is being served.
        path: The other route.
        payload: Its JSON body.

    Raises:
        ApiError: the route has not answered 200; a fault of the client's is passed on in its words.
    """
    body = json.dumps(payload).encode()
    whole = str(scope.get("root_path", "")) + path
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    own = {**scope, "path": whole, "raw_path": whole.encode(), "headers": headers}
    answer = _Answer(body)
    await app({**own, "query_string": b""}, answer.receive, answer.send)
    if answer.status != 200:
        raise answer.error()
    return answer.body


class _Answer:
    """Both ends of one exchange."""

    def __init__(self, body: bytes) -> None:
        self._payload: bytes | None = body
        self.status, self.body = 500, b""

    async def receive(self) -> Event:
        if self._payload is None:
            # a server that hears of a disconnect drops the request; the caller stays to the end
            await asyncio.Event().wait()
        event = {"type": "http.request", "body": self._payload, "more_body": False}
        self._payload = None
        return event

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = int(event["status"])
        elif event["type"] == "http.response.body":
            self.body += event.get("body", b"")

    def error(self) -> Exception:
        """What the client is told of a reply that is none."""
        if not 400 <= self.status < 500:
            return internal_error()
        try:
            message = str(json.loads(self.body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return internal_error()
        return ApiError(self.status, message)
