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
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.settings import ServerSettings

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

FIELD = "safeswitch"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_ADDING = ("tools", "functions", "documents", "chat_template", "chat_template_kwargs")
"""Fields with which a client may put more into the prompt than its messages."""
_WISHES = ("policy", "bundle")
_log = logging.getLogger("safeswitch.server")


class Refused(Exception):
    """A request that is answered here, with a status and a message for the client."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def _unrecorded() -> Refused:
    return Refused(503, "decisions cannot be recorded at the moment; try again later", "server_error")


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
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "SafeSwitch does not serve WebSockets"})
            return
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        request_id = ""
        try:
            request_id = _request_id(scope)
            body = await self._body(receive)
            context, body = self._context(str(scope["path"]), body, request_id)
            await self._audit_is_there()
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

    async def _audit_is_there(self) -> None:
        """Turn a request away while what would be decided on it could not be kept."""
        if self.audit is None:
            return
        try:
            await asyncio.to_thread(self.audit.check)
        except AuditError as error:
            _log.error("%s", error)
            raise _unrecorded() from error

    def _context(self, path: str, body: bytes, request_id: str) -> tuple[Context, bytes]:
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
        told = self._told(policy, bundle, _text(path, asked), request_id)
        return told, body if wishes is None else json.dumps(asked).encode()

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
                try:
                    await asyncio.to_thread(self.audit.write, self._record(verdict, request_id))
                except AuditError:
                    context.unrecorded = True
                    raise

        context = Context(policy=policy, bundle=bundle, text=text, on_decision=decided)
        return context

    def _record(self, verdict: Verdict, request_id: str) -> dict[str, Any]:
        d, raw = verdict.decision, verdict.text.encode("utf-8", "surrogatepass")
        kept = raw.decode("utf-8", "replace").replace("\0", "\ufffd") if self.settings.audit_text else None
        return {
            "request_id": request_id, "choice": verdict.choice, "bundle": verdict.bundle, "bundle_id": verdict.bundle_id,
            "policy": verdict.policy, "fired": d.fired, "stage": d.stage, "token_index": d.token_index,
            "scores": json.dumps(dict(d.scores)), "thresholds": json.dumps(dict(d.thresholds)), "error": d.error,
            "text_sha256": hashlib.sha256(raw).hexdigest(), "text": kept,
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
        elif not more and self._context.unrecorded:
            await _answer(self._send, _unrecorded(), self._id)
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


def _text(path: str, asked: dict[str, Any]) -> str | None:
    """Plain text of the conversation, as readers of text are given it; None where the prompt may hold more than that."""
    prompt, messages = asked.get("prompt"), asked.get("messages")
    if path == "/v1/completions" and isinstance(prompt, str):
        return prompt
    if path != "/v1/chat/completions" or not isinstance(messages, list) or any(asked.get(name) for name in _ADDING):
        return None
    contents = [m.get("content") for m in messages if isinstance(m, dict) and set(m) <= {"role", "content", "name"}]
    texts = [c if isinstance(c, str) else _joined(c) for c in contents]
    if len(texts) < len(messages):
        return None
    whole = [text for text in texts if text is not None]
    return "\n".join(whole) if len(whole) == len(texts) else None


def _joined(parts: Any) -> str | None:
    """The text of a message in parts; None where a part is something else."""
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        return None
    return "\n".join(p["text"] for p in parts)


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
