"""A scripted engine and server behind the middleware, for real clients: vLLM's replies as they are
once refusals are apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai

from safeswitch.core.types import Decision
from safeswitch.engines.context import CONTEXT, ChoiceDecision, Refusal
from safeswitch.serving.middleware import SafeSwitchMiddleware
from safeswitch.serving.settings import ServerSettings

FIRED = Decision(
    True, "stage2", {"stage1": 0.97}, {"stage1": 0.53}, token_index=3, actuator="low_rank_head"
)
PASSED = Decision(False, "stage1", {"stage1": 0.11}, {"stage1": 0.53})
REFUSAL = "I can't help with that. é"
USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


@dataclass
class Server:
    """Answers with a JSON body, or with the events of a stream.

    Args:
        decisions: Of each choice; one that fired has its refusal apart where the request asks for
            that.
        body: A whole reply, or the events of a stream (a string is sent as it is).
        refuse_at: Before which event the refusals come in.
    """

    decisions: Sequence[Decision]
    body: dict[str, Any] | Sequence[dict[str, Any] | str]
    refuse_at: int = 1

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        stream = not isinstance(self.body, dict)
        kind = b"text/event-stream" if stream else b"application/json"
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        )
        if isinstance(self.body, dict):
            self._decide()
            await send({"type": "http.response.body", "body": json.dumps(self.body).encode()})
            return
        for i, event in enumerate(self.body):
            if i == self.refuse_at:
                self._decide()
            await send({"type": "http.response.body", "body": _line(event), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _decide(self) -> None:
        context = CONTEXT.get()
        assert context is not None
        for i, decision in enumerate(self.decisions):
            context.decisions[i] = ChoiceDecision(
                i, decision, "default", "abcd", context.policy or "enforce", ""
            )
            if decision.fired and context.separate_refusals:
                context.refusals[i] = Refusal(REFUSAL, 7, True)


def _line(event: dict[str, Any] | str) -> bytes:
    if isinstance(event, str):
        return event.encode()
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


def guarded(server: Server, settings: ServerSettings | None) -> Any:
    """``server`` with the middleware around it."""
    return SafeSwitchMiddleware(server, settings or ServerSettings())


def http(server: Server, settings: ServerSettings | None = None) -> httpx2.AsyncClient:
    """A client of HTTP that talks to ``server`` through the middleware."""
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(guarded(server, settings)), base_url="http://server"
    )


def openai_client(
    server: Server, settings: ServerSettings | None = None, key: str = "none"
) -> openai.AsyncOpenAI:
    """OpenAI's client of the same."""
    inner = http(server, settings)
    return openai.AsyncOpenAI(
        base_url="http://server/v1", api_key=key, http_client=inner, max_retries=0
    )


def anthropic_client(
    server: Server, settings: ServerSettings | None = None, key: str = "none"
) -> anthropic.AsyncAnthropic:
    """Anthropic's client of the same."""
    inner = httpx2.AsyncClient(transport=httpx2.ASGITransport(guarded(server, settings)))
    return anthropic.AsyncAnthropic(
        base_url="http://server", api_key=key, http_client=inner, max_retries=0
    )
