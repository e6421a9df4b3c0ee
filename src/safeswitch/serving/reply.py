"""A server's response on its way out: verdicts are put in, and what must not leave is taken out."""

from __future__ import annotations

import json
import logging
from typing import Any

from safeswitch.engines.context import Context, Verdict
from safeswitch.serving.refused import Event, Refused, Send, answer, refuse

FIELD = "safeswitch"
_log = logging.getLogger("safeswitch.server")


def inside() -> Refused:
    """For whatever went wrong in the server: a client is told nothing of it."""
    return Refused(500, "the server could not answer this request", "server_error")


def unrecorded() -> Refused:
    """For a reply whose decision cannot be kept."""
    return Refused(503, "decisions cannot be recorded at the moment; try again later", "server_error")


class Reply:
    """Passes a response on, with the verdicts in it."""

    def __init__(self, send: Send, context: Context, request_id: str, own_errors: bool) -> None:
        self._out, self._context, self._id, self._own_errors = send, context, request_id, own_errors
        self._start: Event | None = None
        self._kind, self._rest, self.begun = "", b"", False

    async def _send(self, event: Event) -> None:
        self.begun = True
        await self._out(event)

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
            await refuse(self._send, unrecorded(), self._id)
        elif not more and self._start is not None and self._start["status"] >= 500 and not self._own_errors:
            status = self._start["status"]
            _log.error("request %s: the server answered %s: %s", self._id, status, self._rest.decode("utf-8", "replace"))
            await answer(self._send, status, inside().to_dict(), self._id)
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
            if self._context.tell_refusals and verdict is not None and _switched(verdict) and isinstance(message, dict):
                message["refusal"], message["content"] = message.get("content"), None
        if isinstance(reply, dict) and len(self._context.decisions) == 1:
            reply[FIELD] = _public(next(iter(self._context.decisions.values())))
        return json.dumps(reply, ensure_ascii=False).encode()

    def _chunk(self, part: bytes) -> bytes:
        """One event of a stream; the chunk that ends a choice carries its verdict."""
        start = part.find(b"data: {")
        if start < 0 or (start > 0 and part[start - 1 : start] != b"\n"):
            return part
        try:
            chunk = json.loads(part[start + 6 :])
        except ValueError:
            return part
        if isinstance(chunk.get("error"), dict):
            return part[: start + 6] + json.dumps(self._error(chunk["error"])).encode()
        choices = chunk.get("choices") or []
        refused = [choice["delta"] for choice in choices if self._refuses(choice)]
        for delta in refused:
            delta["refusal"], delta["content"] = delta["content"], None
        ended = [choice for choice in choices if choice.get("finish_reason")]
        for choice in ended:
            self._add(choice)
        if len(ended) == 1 and FIELD in ended[0]:
            chunk[FIELD] = ended[0][FIELD]
        return part[: start + 6] + json.dumps(chunk, ensure_ascii=False).encode() if ended or refused else part

    def _refuses(self, choice: dict[str, Any]) -> bool:
        """Whether a chunk of a chat holds text of a refusal that the client is to be told of as such."""
        delta = choice.get("delta")
        told = self._context.tell_refusals and int(choice.get("index", 0)) in self._context.refusing
        return told and isinstance(delta, dict) and bool(delta.get("content"))

    def _error(self, error: dict[str, Any]) -> dict[str, Any]:
        """An error in the middle of a stream, without the server's inside."""
        code = error.get("code")
        if isinstance(code, int) and 400 <= code < 500:
            return {"error": error}
        _log.error("request %s: its stream ended with %s", self._id, error)
        return unrecorded().to_dict() if self._context.unrecorded else inside().to_dict()

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
