"""The guard's part of an OpenAI-compatible server, as one ASGI middleware around it.

For each request it asks who sent it, settles an id, takes the client's wishes out of the body,
hands what it knows down to the engine's front end, and puts each verdict on record and into the
reply: into the JSON body, or into the chunk of a stream that ends a choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.trace import Span
from starlette._utils import get_route_path

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import CONTEXT, Context, Verdict
from safeswitch.serving import metrics
from safeswitch.serving.access import OPEN_PATHS, Access
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.body import check_sizes, read_body, receive_body, replies_asked
from safeswitch.serving.keys import Key
from safeswitch.serving.policy import Facts
from safeswitch.serving.policy_in_force import PolicyInForce
from safeswitch.serving.refused import Event, Refused, Send, answer, named, refuse
from safeswitch.serving.replies.asked import form_of, shape
from safeswitch.serving.replies.form import FIELD
from safeswitch.serving.reply import Reply, inside, unrecorded
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.tracing import add_verdict, request_span

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]

THRESHOLDS = "/safeswitch/thresholds"
"""``POST {"bundle": ..., "thresholds": {...}}`` by an admin key: puts thresholds in force and
answers those in force."""
POLICY = "/safeswitch/policy"
"""``POST {}`` by an admin key: reads the policy file again and answers what is in force."""
METRICS = "/metrics"
_LARGEST_BODY = 1 << 20
_BODY_AROUND, _BODY_PER_TOKEN = 64 << 10, 32
"""Bytes of a body that hold no prompt (tools, schemas), and for each token of the context: eight
times what text needs."""
_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_WISHES = ("policy", "bundle")
_log = logging.getLogger("safeswitch.server")


class SafeSwitchMiddleware:
    """See the module text.

    Args:
        app: The server.
        settings: The operator's; None reads them from the environment.
    """

    own_errors = False
    """Whether the server's errors hold nothing of its inside, and so may pass."""

    def __init__(self, app: Any, settings: ServerSettings | None = None) -> None:
        self.app = app
        self.settings = settings or ServerSettings.from_environment()
        chosen = self.settings
        buffer = Path(chosen.audit_buffer) if chosen.audit_failure == "buffer" else None
        self.audit = (
            Audit(chosen.audit, buffer=buffer, buffer_limit=chosen.audit_buffer_limit)
            if chosen.audit
            else None
        )
        self.access = Access(Path(chosen.keys), chosen.rate_storage) if chosen.keys else None
        self.policy = _policy_of(chosen)
        metrics.calibrated_on(chosen.calibration)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send(
                {
                    "type": "websocket.close",
                    "code": 1008,
                    "reason": "SafeSwitch does not serve WebSockets",
                }
            )
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = ""
        try:
            request_id = _request_id(scope)
            async with AsyncExitStack() as stack:
                key = None
                if (
                    self.access is not None
                    and get_route_path(scope) not in OPEN_PATHS
                    and scope["method"] != "OPTIONS"
                ):
                    key = self.access.key(scope["headers"])
                    await stack.enter_async_context(self.access.admitted(key))
                if (
                    get_route_path(scope) == METRICS
                    and self.access is not None
                    and not self._sees_scores(key)
                ):
                    # a sum of scores before and after one's own request is that request's score
                    raise Refused(
                        403, "metrics are for keys with the right to see scores", "permission_error"
                    )
                self.check_route(scope)
                if scope["method"] == "POST":
                    stack.enter_context(self.admitted(scope))
                    await self._post(scope, receive, send, key, request_id)
                else:
                    await self.app(scope, receive, named(send, request_id))
        except Refused as refused:
            await asyncio.sleep(self.settings.error_delay)
            await refuse(send, refused, request_id)

    def admitted(self, scope: Scope) -> AbstractContextManager[None]:
        """Held while a request to the engine is inside; raises what it is refused with. Overridden
        for each engine."""
        return nullcontext()

    def context_length(self, scope: Scope) -> int | None:
        """Tokens of the model's context, None where that is not known; overridden for each
        engine."""
        return None

    def _largest_body(self, scope: Scope) -> int:
        """Bytes of the largest body that is read."""
        context = self.context_length(scope)
        if self.settings.max_body or context is None:
            return self.settings.max_body or _LARGEST_BODY
        return min(_LARGEST_BODY, _BODY_AROUND + _BODY_PER_TOKEN * context)

    def check_route(self, scope: Scope) -> None:
        """Refuse a route that is closed; every route of the server is open unless overridden.

        Raises:
            Refused: it is closed.
        """

    def check_fields(
        self, scope: Scope, asked: JsonObject, key: Key | None, context: Context
    ) -> None:
        """Refuse fields of a body that are not served, and tell ``context`` what the server needs.

        Overridden for servers that do not check their requests in this way themselves.

        Raises:
            Refused: naming the field.
        """

    async def _post(
        self, scope: Scope, receive: Receive, send: Send, key: Key | None, request_id: str
    ) -> None:
        body = await receive_body(receive, scope["headers"], self._largest_body(scope))
        asked = read_body(body, scope["headers"])
        if get_route_path(scope) == THRESHOLDS:
            await answer(send, 200, await self._thresholds(scope, asked, key), request_id)
            return
        if get_route_path(scope) == POLICY:
            await answer(send, 200, self._reload(asked, key), request_id)
            return
        with request_span(str(scope["path"]), request_id, scope["headers"]) as span:
            context = self._told(key, request_id, span)
            if asked is not None:
                check_sizes(asked, self.settings.max_choices)
                if self.access is not None and key is not None:
                    await self.access.charge(key, replies_asked(asked) - 1)
                body = self._asked(scope, asked, key, context)
            await self._audit_is_there()
            headers = [
                (k, v) for k, v in scope["headers"] if k not in (b"content-length", b"x-request-id")
            ]
            headers += [
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", request_id.encode()),
            ]
            token = CONTEXT.set(context)
            form = form_of(get_route_path(scope))(
                context, self._sees_scores(key), self.settings.tell_kinds
            )
            reply = Reply(send, form, request_id, self.own_errors, self.settings.error_delay)
            try:
                # vLLM calls ``AsyncLLM.generate`` in this context; there ``engines/vllm/install.py``
                # has put the guarded front end, which reads CONTEXT. The transformers server's own
                # front end does the same.
                await self.app({**scope, "headers": headers}, _replay(body, receive), reply.send)
            except Exception as error:
                _log.exception("request %s", request_id)
                told = self.told(error, context)
                if not reply.begun:
                    raise told from None
                if not await reply.break_off(told):
                    raise
            finally:
                CONTEXT.reset(token)

    def told(self, error: Exception, context: Context) -> Refused:
        """What a client is told of an error that nothing in the server has caught."""
        return unrecorded() if context.unrecorded else inside()

    async def _audit_is_there(self) -> None:
        """Turn a request away while what would be decided on it could not be kept."""
        if self.audit is None:
            return
        try:
            await asyncio.to_thread(self.audit.check)
        except AuditError as error:
            _log.error("%s", error)
            raise unrecorded() from error

    def _asked(self, scope: Scope, asked: JsonObject, key: Key | None, context: Context) -> bytes:
        """Fill ``context`` with what the client asks for, and give the body for the server."""
        wishes = asked.pop(FIELD, None)
        self._wish(wishes, key, context)
        self._hold_to_policy(key, context)
        context.max_tokens = self.settings.max_tokens or None
        self.check_fields(scope, asked, key, context)
        shape(get_route_path(scope), asked, context)
        # written anew, so that the server reads what has been checked and nothing else
        return json.dumps(asked).encode()

    def _wish(self, wishes: Any, key: Key | None, context: Context) -> None:
        may, bundles = (
            (key.may, key.bundles)
            if key is not None
            else (self.settings.clients_may, self.settings.clients_bundles)
        )
        context.bundle = bundles[0] if key is not None and bundles else None
        if wishes is None:
            return
        if (
            not isinstance(wishes, dict)
            or set(wishes) - set(_WISHES)
            or not all(isinstance(w, str) for w in wishes.values())
        ):
            raise Refused(400, f"{FIELD!r} takes an object with {' and '.join(_WISHES)}")
        policy, bundle = wishes.get("policy"), wishes.get("bundle")
        if policy is not None and policy not in may:
            raise Refused(
                403, f"you may not set the SafeSwitch policy to {policy!r}", "permission_error"
            )
        if bundle is not None and bundle not in bundles:
            raise Refused(
                403, f"you may not ask for the SafeSwitch bundle {bundle!r}", "permission_error"
            )
        context.policy, context.bundle = policy, bundle or context.bundle

    def _hold_to_policy(self, key: Key | None, context: Context) -> None:
        """Tell ``context`` what the policy has done with this client's requests."""
        if self.policy is None:
            return
        self.policy.refresh()
        name = key.name if key is not None else None
        try:
            context.rules = self.policy.rules(name, context.bundle)
        except SettingError as error:
            raise Refused(400, str(error)) from error
        context.allows = partial(self.policy.allows, name)
        context.policy_id = self.policy.id

    def _reload(self, asked: Any, key: Key | None) -> JsonObject:
        if key is None or not key.admin:
            raise Refused(
                403,
                "the policy is for admin keys (safeswitch keys add --admin)",
                "permission_error",
            )
        if self.policy is None:
            raise Refused(400, "this server has no policy file (safeswitch serve --policy-file)")
        if asked:
            raise Refused(400, "give an empty object: the policy is read from its file")
        self.policy.refresh(anyway=True)
        if self.policy.fault:
            raise Refused(400, f"the policy {self.policy.id} stays in force: {self.policy.fault}")
        return {"policy": self.policy.id}

    def _sees_scores(self, key: Key | None) -> bool:
        return key.scores or key.admin if key is not None else self.settings.clients_scores

    async def _thresholds(self, scope: Scope, asked: Any, key: Key | None) -> JsonObject:
        if key is None or not key.admin:
            raise Refused(
                403,
                "thresholds are for admin keys (safeswitch keys add --admin)",
                "permission_error",
            )
        if not isinstance(asked, dict) or set(asked) - {"bundle", "thresholds"}:
            raise Refused(
                400,
                "give an object with bundle (its name) and thresholds (stage to number; none: only "
                "show)",
            )
        wanted, bundle = asked.get("thresholds", {}), asked.get("bundle", "default")
        numbers = isinstance(wanted, dict) and all(type(v) in (int, float) for v in wanted.values())
        if not numbers or not isinstance(bundle, str):
            raise Refused(400, "bundle is a name, and thresholds are numbers by stage")
        try:
            in_force = await self.set_thresholds(scope, bundle, wanted)
        except SettingError as error:
            raise Refused(400, str(error)) from error
        _log.warning("thresholds of %s set by %s: %s", bundle, key.name, in_force)
        return {"bundle": bundle, "thresholds": in_force}

    async def set_thresholds(
        self, scope: Scope, bundle: str, thresholds: Mapping[str, float]
    ) -> dict[str, float]:
        """Put thresholds in force in the engine behind the server; overridden for each engine.

        Raises:
            SettingError: an unknown bundle or stage, or a value outside [0, 1].
        """
        raise Refused(501, "this server's thresholds cannot be changed while it runs")

    def _told(self, key: Key | None, request_id: str, span: Span) -> Context:
        """What the front end is told of a request, and what is done with each decision on it."""

        async def decided(verdict: Verdict) -> None:
            """Count the decision, trace it, log it and put it on record, before the reply leaves."""
            metrics.count(verdict.decision, verdict.bundle, verdict.policy)
            add_verdict(span, verdict)
            d = verdict.decision
            _log.info(
                "request %s choice %d: fired=%s stage=%s token=%d policy=%s",
                request_id,
                verdict.choice,
                d.fired,
                d.stage,
                d.token_index,
                verdict.policy,
            )
            if self.audit is not None:
                try:
                    await asyncio.to_thread(
                        self.audit.write, self._record(verdict, request_id, key, context.policy_id)
                    )
                except AuditError:
                    context.unrecorded = True
                    raise

        context = Context(on_decision=decided, tell_refusals=self.settings.refusal_field)
        return context

    def _record(
        self, verdict: Verdict, request_id: str, key: Key | None, policy_id: str
    ) -> JsonObject:
        d, raw = verdict.decision, verdict.text.encode("utf-8", "surrogatepass")
        kept = (
            raw.decode("utf-8", "replace").replace("\0", "\ufffd")
            if self.settings.audit_text
            else None
        )
        return {
            "request_id": request_id,
            "client": key.name if key is not None else None,
            "choice": verdict.choice,
            "bundle": verdict.bundle,
            "bundle_id": verdict.bundle_id,
            "policy": verdict.policy,
            "fired": d.fired,
            "stage": d.stage,
            "token_index": d.token_index,
            "scores": json.dumps(dict(d.scores)),
            "thresholds": json.dumps(dict(d.thresholds)),
            "error": d.error,
            "text_sha256": hashlib.sha256(raw).hexdigest(),
            "text": kept,
            "category": d.category or None,
            "categories": json.dumps(dict(d.categories)) if d.categories else None,
            "severity": d.severity or None,
            "act": d.act or None,
            "policy_id": policy_id or None,
        }


def check(settings: ServerSettings) -> None:
    """Refuse settings with which no server could start, before a model is loaded.

    Raises:
        SettingError: an audit URL or a policy that cannot be used.
        ArtifactError: no file of keys.
    """
    middleware = SafeSwitchMiddleware(None, settings)
    if middleware.audit is not None:
        middleware.audit.close()


def _policy_of(settings: ServerSettings) -> PolicyInForce | None:
    if not settings.policy_file:
        return None
    bundles = {name: Facts.parse(name, dict(told)) for name, told in settings.bundles.items()}
    return PolicyInForce(Path(settings.policy_file), bundles, settings.engine)


def _request_id(scope: Scope) -> str:
    given = [v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"]
    if not given:
        return uuid.uuid4().hex
    if not _ID.fullmatch(given[0]):
        raise Refused(400, "X-Request-Id takes up to 100 letters, digits and . _ : -")
    return str(given[0])


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Event:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
