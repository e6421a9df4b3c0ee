"""A request that a server puts to itself, past its own door: another route does the work.

Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import json

from starlette.types import ASGIApp, Receive, Scope, Send

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
    answer = _Answer(json.dumps(payload).encode())
    await app(_own(scope, path, answer.payload), answer.receive, answer.send)
    if answer.status != 200:
        raise fault(answer.status, answer.body)
    return answer.body


async def pass_within(
    app: ASGIApp, scope: Scope, path: str, payload: JsonMapping, receive: Receive, send: Send
) -> None:
    """Hand the reply to ``POST path`` on as it comes, in the context of the caller.

    Args:
        app: The ASGI application behind the middleware.
        scope: Of the request that is being served.
        path: The other route.
        payload: Its JSON body.
        receive: Of the request that is being served, whose body has been taken; it tells when the
            client leaves.
        send: Where the reply goes.
    """
    body = json.dumps(payload).encode()
    await app(_own(scope, path, body), replay(body, receive), send)


def replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives ``body`` first."""
    sent = False

    async def again() -> Event:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def fault(status: int, body: bytes) -> ApiError:
    """What the client is told of a reply that is none: a fault of its own in the route's words."""
    if not 400 <= status < 500:
        return internal_error()
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return internal_error()
    return ApiError(status, message)


def _own(scope: Scope, path: str, body: bytes) -> Scope:
    """The scope of a request to ``path`` that comes with ``body``."""
    whole = str(scope.get("root_path", "")) + path
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    own = {**scope, "path": whole, "raw_path": whole.encode(), "headers": headers}
    return {**own, "query_string": b""}


class _Answer:
    """Both ends of one exchange."""

    def __init__(self, body: bytes) -> None:
        self.payload, self.status, self.body = body, 500, b""
        # a server that hears of a disconnect drops the request; the caller stays to the end
        self.receive = replay(body, _never)

    async def send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = int(event["status"])
        elif event["type"] == "http.response.body":
            self.body += event.get("body", b"")


async def _never() -> Event:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")
