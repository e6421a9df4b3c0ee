"""The guard's part of an OpenAI-compatible server, as one ASGI middleware around it.

For each request it settles an id, takes the client's wishes out of the body,
hands what it knows down to the front end, and puts each verdict into the reply: into the JSON body, or into the chunk of a
stream that ends a choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from safeswitch.engines.context import CONTEXT, Context, Verdict
from safeswitch.serving import metrics
from safeswitch.serving.audit import Audit
from safeswitch.serving.settings import ServerSettings

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

FIELD = "safeswitch"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_WISHES = ("policy", "bundle")
_log = logging.getLogger("safeswitch.server")


class Refused(Exception):
    """A request that is answered here, with a status and a message for the client."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class SafeSwitchMiddleware:
    """See the module text.

    Args:
        app: The server.
        settings: The operator's; None reads them from the environment.
    """

    def __init__(self, app: Any, settings: ServerSettings | None = None) -> None:
        self.app = app
        self.settings = settings or ServerSettings.from_environment()
        chosen = self.settings
        buffer = Path(chosen.audit_buffer) if chosen.audit_failure == "buffer" else None
        self.audit = Audit(chosen.audit, buffer=buffer, buffer_limit=chosen.audit_buffer_limit) if chosen.audit else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request_id = ""
        try:
            request_id = _request_id(scope)
            body = await self._body(receive)
            context, body = self._context(body, request_id)
        except Refused as refused:
            await _answer(send, refused, request_id)
            return
        reply = _Reply(send, context, request_id, self.settings.refusal_field)
        headers = [(k, v) for k, v in scope["headers"] if k not in (b"content-length", b"x-request-id")]
        headers += [(b"content-length", str(len(body)).encode()), (b"x-request-id", request_id.encode())]
        token = CONTEXT.set(context)
        try:
            await self.app({**scope, "headers": headers}, _replay(body, receive), reply.send)
        finally:
            CONTEXT.reset(token)

    async def _body(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                raise Refused(499, "the client has left")
            parts.append(event.get("body", b""))
            size += len(parts[-1])
            if size > self.settings.max_body:
                raise Refused(413, f"the request body is larger than {self.settings.max_body} bytes")
            if not event.get("more_body"):
                return b"".join(parts)

    def _context(self, body: bytes, request_id: str) -> tuple[Context, bytes]:
        """What the front end is told, and the body without what was for us."""
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            return self._told(None, None, None, request_id), body
        wishes = asked.pop(FIELD, None)
        if asked.get("use_beam_search"):
            raise Refused(400, "beam search is not served: SafeSwitch decides on one reply at a time")
        extra = asked.get("vllm_xargs")
        if isinstance(extra, dict) and FIELD in extra:
            raise Refused(400, f"vllm_xargs.{FIELD} is reserved; ask with the field {FIELD!r}")
        policy, bundle = self._wishes(wishes)
        return self._told(policy, bundle, _text(asked), request_id), body if wishes is None else json.dumps(asked).encode()

    def _wishes(self, wishes: Any) -> tuple[str | None, str | None]:
        if wishes is None:
            return None, None
        if not isinstance(wishes, dict) or set(wishes) - set(_WISHES) or not all(isinstance(w, str) for w in wishes.values()):
            raise Refused(400, f"{FIELD!r} takes an object with {' and '.join(_WISHES)}")
        policy = wishes.get("policy")
        if policy is not None and policy not in self.settings.clients_may:
            raise Refused(403, f"you may not set the SafeSwitch policy to {policy!r}", "permission_error")
        return policy, wishes.get("bundle")

    def _told(self, policy: str | None, bundle: str | None, text: str | None, request_id: str) -> Context:
        async def decided(verdict: Verdict) -> None:
            metrics.count(verdict.decision, verdict.bundle, verdict.policy)
            d = verdict.decision
            _log.info(
                "request %s choice %d: fired=%s stage=%s token=%d policy=%s", request_id, verdict.choice, d.fired, d.stage,
                d.token_index, verdict.policy,
            )
            if self.audit is not None:
                await asyncio.to_thread(self.audit.write, self._record(verdict, text or "", request_id))

        return Context(policy=policy, bundle=bundle, text=text, on_decision=decided)

    def _record(self, verdict: Verdict, text: str, request_id: str) -> dict[str, Any]:
        d = verdict.decision
        return {
            "request_id": request_id, "choice": verdict.choice, "bundle": verdict.bundle, "bundle_id": verdict.bundle_id,
            "policy": verdict.policy, "fired": d.fired, "stage": d.stage, "token_index": d.token_index,
            "scores": json.dumps(dict(d.scores)), "thresholds": json.dumps(dict(d.thresholds)), "error": d.error,
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text if self.settings.audit_text else None,
        }


class _Reply:
    """Passes a response on, with the verdicts in it."""

    def __init__(self, send: Send, context: Context, request_id: str, refusal_field: bool) -> None:
        self._send, self._context, self._id, self._refusal = send, context, request_id, refusal_field
        self._start: Event | None = None
        self._kind, self._rest = "", b""

    async def send(self, event: Event) -> None:
        """Stands in for the server's ``send``: holds a JSON body until it is whole, and a stream's event until it is."""
        if event["type"] == "http.response.start":
            headers = [(k, v) for k, v in event["headers"] if k.lower() != b"x-request-id"]
            self._kind = next((v.decode() for k, v in headers if k.lower() == b"content-type"), "").split(";")[0]
            self._start = {**event, "headers": [*headers, (b"x-request-id", self._id.encode())]}
            if self._kind != "application/json":
                await self._send(self._start)
            return
        if event["type"] != "http.response.body" or self._kind not in ("application/json", "text/event-stream"):
            await self._send(event)
            return
        self._rest += event.get("body", b"")
        more = bool(event.get("more_body"))
        if self._kind == "text/event-stream":
            *whole, self._rest = self._rest.split(b"\n\n") if more else [self._rest]
            done = b"".join(self._chunk(part) + b"\n\n" for part in whole)
            if not more:
                done, self._rest = self._chunk(self._rest), b""
            await self._send({**event, "body": done})
        elif not more:
            body = self._whole(self._rest)
            assert self._start is not None
            headers = [(k, v) for k, v in self._start["headers"] if k.lower() != b"content-length"]
            await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await self._send({"type": "http.response.body", "body": body})

    def _whole(self, body: bytes) -> bytes:
        if not self._context.decisions:
            return body
        reply = json.loads(body)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        for choice in choices or []:
            verdict = self._add(choice)
            message = choice.get("message")
            if self._refusal and verdict is not None and _switched(verdict) and isinstance(message, dict):
                message["refusal"], message["content"] = message.get("content"), None
        if isinstance(reply, dict) and len(self._context.decisions) == 1:
            reply[FIELD] = _public(next(iter(self._context.decisions.values())))
        return json.dumps(reply, ensure_ascii=False).encode()

    def _chunk(self, part: bytes) -> bytes:
        """One event of a stream; the chunk that ends a choice carries its verdict."""
        start = part.find(b"data: {")
        if start < 0 or (start > 0 and part[start - 1 : start] != b"\n") or not self._context.decisions:
            return part
        try:
            chunk = json.loads(part[start + 6 :])
        except ValueError:
            return part
        ended = [choice for choice in chunk.get("choices") or [] if choice.get("finish_reason")]
        for choice in ended:
            self._add(choice)
        if len(ended) == 1 and FIELD in ended[0]:
            chunk[FIELD] = ended[0][FIELD]
        return part[: start + 6] + json.dumps(chunk, ensure_ascii=False).encode() if ended else part

    def _add(self, choice: dict[str, Any]) -> Verdict | None:
        verdict = self._context.decisions.get(int(choice.get("index", 0)))
        if verdict is not None:
            choice[FIELD] = _public(verdict)
        return verdict


def _switched(verdict: Verdict) -> bool:
    return verdict.decision.fired and verdict.policy == "enforce"


def _public(verdict: Verdict) -> dict[str, Any]:
    """What a client is told."""
    d = verdict.decision
    return {
        "fired": d.fired, "switched": _switched(verdict) and d.actuator != "none", "stage": d.stage, "scores": dict(d.scores),
        "thresholds": dict(d.thresholds), "token_index": d.token_index, "policy": verdict.policy, "bundle": verdict.bundle,
        "bundle_id": verdict.bundle_id,
    }


def _request_id(scope: Scope) -> str:
    given = [v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"]
    if not given:
        return uuid.uuid4().hex
    if not _ID.fullmatch(given[0]):
        raise Refused(400, "X-Request-Id takes up to 100 letters, digits and . _ : -")
    return str(given[0])


def _text(asked: dict[str, Any]) -> str | None:
    """Plain text of the conversation, as readers of text are given it; None where it is not in the body."""
    messages, prompt = asked.get("messages"), asked.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(messages, list):
        return None
    found = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        found.append("".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)))
    return "\n".join(found)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Event:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, refused: Refused, request_id: str) -> None:
    """An error in OpenAI's shape."""
    error = {"error": {"message": str(refused), "type": refused.kind, "param": None, "code": refused.status}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
