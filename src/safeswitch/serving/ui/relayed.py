"""The chat on a server whose tokens nobody follows: its own chat route answers, and the decision
that goes with every reply tells what the stages said.

Knows nothing of engines: any server of OpenAI's will do that stands inside the middleware.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.engines.context import CONTEXT, Context
from safeswitch.serving.errors import ApiError, Event
from safeswitch.serving.fastapi_errors import error_answer
from safeswitch.serving.replies.shape import CHAT
from safeswitch.serving.transformers.openai_replies import DONE, event
from safeswitch.serving.ui.events import end_event, read_events, rollback_events
from safeswitch.serving.ui.page import SERVED, ChatBody, Facts
from safeswitch.serving.within import fault, pass_within

_TEXTS = ("reasoning", "reasoning_content", "content")
"""Fields of a chunk that hold what the model writes, in the order in which it is written."""


class RelayedChat:
    """See the module text.

    Args:
        app: The server, inside the middleware.
        answer_to: What a client is told of an error that the server has not answered.
    """

    traces = False

    def __init__(self, app: ASGIApp, answer_to: Callable[[Exception], ApiError]) -> None:
        self._app, self._answer_to = app, answer_to

    async def answer(self, request: Request, body: ChatBody, facts: Facts) -> Response:
        """A stream of events, translated from the server's chunks as they come."""
        served = request.scope[SERVED]
        context = CONTEXT.get()
        assert context is not None
        # as the client has sent it: what may stand in it has been checked, for this server too
        payload: JsonObject = await request.json()
        payload |= {"model": facts.name(served), "stream": True, "temperature": 0.0}

        def pilot(bundle: str) -> int:
            return facts.pilot(served, bundle)

        return _Relay(self._app, served, payload, _PageEvents(context, pilot), self._answer_to)


class _Relay(Response):
    """A response that is another route's, translated."""

    def __init__(
        self,
        app: ASGIApp,
        served: Scope,
        payload: JsonObject,
        events: _PageEvents,
        answer_to: Callable[[Exception], ApiError],
    ) -> None:
        super().__init__()
        self._app, self._served, self._payload = app, served, payload
        self._events, self._answer_to = events, answer_to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Translated(self._events, send)
        try:
            await pass_within(self._app, self._served, CHAT, self._payload, receive, answer.send)
        except Exception as error:
            if answer.begun:  # the middleware ends the stream, and says so in its last event
                raise
            answer.error = self._answer_to(error)
        if answer.error is not None:
            await error_answer(answer.error)(scope, receive, send)


class _Translated:
    """Stands in for ``send``: a stream goes on as the page's events, anything else is an error.

    Attributes:
        begun: Whether something has been sent.
        error: What the client is to be told, where the reply is no stream.
    """

    def __init__(self, events: _PageEvents, send: Send) -> None:
        self.begun = False
        self.error: ApiError | None = None
        self._events, self._out = events, send
        self._status, self._rest = 0, b""

    async def send(self, event: Event) -> None:
        """Take one event of the server's reply."""
        if event["type"] == "http.response.start":
            self._status = int(event["status"])
            if self._status == 200:
                headers = [(b"content-type", b"text/event-stream")]
                await self._send({**event, "headers": headers})
            return
        if event["type"] != "http.response.body":
            return
        self._rest += event.get("body", b"")
        more = bool(event.get("more_body"))
        if self._status != 200:
            if not more:
                self.error = fault(self._status, self._rest)
            return
        *whole, self._rest = self._rest.split(b"\n\n")
        body = b"".join(self._events.of(part) for part in whole)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _send(self, event: Event) -> None:
        self.begun = True
        await self._out(event)


class _PageEvents:
    """The page's events for those of one reply of the chat route.

    Args:
        context: Of the request; holds its decision once that is on record.
        pilot: Reply tokens that stage 2 of a bundle reads.
    """

    def __init__(self, context: Context, pilot: Callable[[str], int]) -> None:
        self._context, self._pilot = context, pilot
        self._reason: str | None = None

    def of(self, part: bytes) -> bytes:
        """What stands in the place of one server-sent event, given without the line that ends
        it."""
        if not part.startswith(b"data: "):
            return b""
        data = part.removeprefix(b"data: ")
        if data == b"[DONE]":
            return b"".join(map(event, self._ending())) + DONE
        chunk = json.loads(data)
        if "error" in chunk:
            return event({"error": chunk["error"]})
        return b"".join(map(event, self._shown(chunk)))

    def _shown(self, chunk: JsonMapping) -> list[JsonObject]:
        found: list[JsonObject] = []
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text = "".join(delta.get(name) or "" for name in _TEXTS)
            found += [{"type": "shown", "text": text}] if text else []
            self._reason = choice.get("finish_reason") or self._reason
        return found

    def _ending(self) -> list[JsonObject]:
        decided = self._context.decisions.get(0)
        if decided is None:
            return [end_event(self._reason, None)]
        reads = read_events(decided.decision, self._pilot(decided.bundle))
        return [*reads, *rollback_events(decided), end_event(self._reason, decided)]
