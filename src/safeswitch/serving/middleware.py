"""The guard's part of an OpenAI-compatible server, as one ASGI middleware around it.

For each request it asks who sent it, settles an id, takes the client's options for the guard out of
the body, hands what it knows down to the engine's front end, and puts each decision on record and
into the reply: into the JSON body, or into the chunk of a stream that ends a choice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.trace import Span
from starlette._utils import get_route_path

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message
from safeswitch.engines.context import CONTEXT, ChoiceDecision, Context
from safeswitch.engines.settings import INJECTION, switched_off
from safeswitch.serving import metrics
from safeswitch.serving.access import OPEN_PATHS, Access
from safeswitch.serving.admin import (
    POLICY,
    THRESHOLDS,
    needs_admin,
    reload_policy,
    wanted_thresholds,
)
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.body import (
    check_replies,
    check_sizes,
    read_body,
    receive_body,
    replies_asked,
)
from safeswitch.serving.checks.reading import CheckedConversation, ClientView
from safeswitch.serving.checks.reads import read_all, until_left
from safeswitch.serving.checks.routes import CHECKS, read_check
from safeswitch.serving.checks.tool_results import tool_readings, without_instructions
from safeswitch.serving.errors import (
    ApiError,
    Event,
    Send,
    internal_error,
    not_recorded,
    send_error,
    send_json,
    with_request_id,
)
from safeswitch.serving.keys import Key
from safeswitch.serving.policy import Facts
from safeswitch.serving.policy_in_force import PolicyInForce
from safeswitch.serving.records import DecisionRecords
from safeswitch.serving.replies.form import FIELD
from safeswitch.serving.replies.shape import CHAT, form_of, shape
from safeswitch.serving.reply import GuardedResponse, counted
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.tracing import request_span
from safeswitch.serving.ui import rights
from safeswitch.serving.within import replay

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]

METRICS = "/metrics"
_LARGEST_BODY = 1 << 20
_BODY_AROUND, _BODY_PER_TOKEN = 64 << 10, 32
"""Bytes of a body that hold no prompt (tools, schemas), and for each token of the context: eight
times what text needs."""
_ID = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_OPTIONS = ("policy", "bundle")
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
        self.policy_in_force = _policy_of(chosen)
        metrics.calibrated_on(chosen.calibration, chosen.drift_bound)

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
        if scope["method"] == "POST":
            send = counted(send)
        try:
            request_id = _request_id(scope)
            async with AsyncExitStack() as stack:
                key = None
                if self.access is not None and not self._is_open(scope):
                    key = self.access.key(scope["headers"])
                    await stack.enter_async_context(self.access.admitted(key))
                if (
                    get_route_path(scope) == METRICS
                    and self.access is not None
                    and not self._sees_scores(key)
                ):
                    # a sum of scores before and after one's own request is that request's score
                    raise ApiError(
                        403, "metrics are for keys with the right to see scores", "permission_error"
                    )
                if self.settings.ui and get_route_path(scope).startswith(rights.API):
                    scope[rights.VISITOR] = rights.visitor_of(key, self.settings)
                self.check_route(scope)
                if scope["method"] == "POST":
                    stack.enter_context(self.admitted(scope))
                    await self._serve_post(scope, receive, send, key, request_id)
                else:
                    await self.app(scope, receive, with_request_id(send, request_id))
        except ApiError as error:
            await asyncio.sleep(self.settings.error_delay)
            await send_error(send, error, request_id)

    def _is_open(self, scope: Scope) -> bool:
        """Whether a request is answered without a key."""
        path, method = get_route_path(scope), scope["method"]
        page = self.settings.ui and path in rights.OPEN and method in rights.READS
        return path in OPEN_PATHS or method == "OPTIONS" or page

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
            ApiError: it is closed.
        """

    def check_fields(
        self, scope: Scope, payload: JsonObject, key: Key | None, context: Context
    ) -> None:
        """Refuse fields of a body that are not served, and tell ``context`` what the server needs.

        Overridden for servers that do not check their requests in this way themselves.

        Raises:
            ApiError: naming the field.
        """

    async def _serve_post(
        self, scope: Scope, receive: Receive, send: Send, key: Key | None, request_id: str
    ) -> None:
        body = await receive_body(receive, scope["headers"], self._largest_body(scope))
        payload = read_body(body, scope["headers"])
        if get_route_path(scope) == THRESHOLDS:
            await send_json(send, 200, await self._thresholds(scope, payload, key), request_id)
            return
        if get_route_path(scope) == POLICY:
            await send_json(
                send, 200, reload_policy(self.policy_in_force, payload, key), request_id
            )
            return
        with request_span(str(scope["path"]), request_id, scope["headers"]) as span:
            context = self._make_context(key, request_id, span)
            if get_route_path(scope) in CHECKS:
                checked = await self._serve_check(scope, receive, payload, key, context, request_id)
                await send_json(send, 200, checked, request_id)
                return
            if payload is not None:
                check_sizes(payload, self.settings.max_choices)
                if self.access is not None and key is not None:
                    await self.access.charge(key, replies_asked(payload) - 1)
                body = await self._checked_body(scope, payload, key, context)
            await self._check_audit()
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
            reply = GuardedResponse(
                send, form, request_id, self.own_errors, self.settings.error_delay
            )
            try:
                # vLLM calls ``AsyncLLM.generate`` in this context; there ``engines/vllm/install.py``
                # has put the guarded front end, which reads CONTEXT. The transformers server's own
                # front end does the same.
                await self.app({**scope, "headers": headers}, replay(body, receive), reply.send)
            except Exception as error:
                _log.exception("request %s", request_id)
                answer = self.error_for_client(error, context)
                if not reply.begun:
                    raise answer from None
                if not await reply.break_off(answer):
                    raise
            finally:
                CONTEXT.reset(token)

    async def _serve_check(
        self,
        scope: Scope,
        receive: Receive,
        payload: JsonObject | None,
        key: Key | None,
        context: Context,
        request_id: str,
    ) -> JsonObject:
        """The reply of a route that reads and does not answer."""
        if switched_off():
            raise ApiError(503, "the guard is switched off; nothing is read", "server_error")
        self._choose_switch((payload or {}).pop(FIELD, None), key, context)
        if context.policy is not None:
            raise ApiError(400, f"{FIELD!r} takes no policy here: nothing is answered")
        self._hold_to_policy(key, context)
        check, readings = read_check(get_route_path(scope), payload)
        check_replies(len(readings), self.settings.max_choices)
        if self.access is not None and key is not None:
            await self.access.charge(key, max(0, len(readings) - 1))
        await self._check_audit()
        view = ClientView(
            f"safeswitch-{request_id}",
            self._sees_scores(key),
            self.settings.tool_results or "refuse",
            self.settings.tell_kinds,
            context.allows,
        )
        work = asyncio.ensure_future(self._read(scope, readings, context))
        return check.reply(await until_left(work, receive), view)

    async def _read(
        self, scope: Scope, readings: Sequence[CheckedConversation], context: Context
    ) -> list[ChoiceDecision]:
        """The decision on each reading; each is on record."""
        bundle = INJECTION if self.settings.injection else context.bundle
        try:
            return await read_all(partial(self.screen, scope), readings, context, bundle)
        except ApiError:
            raise
        except Exception as error:
            _log.exception("reading without an answer")
            raise self.error_for_client(error, context) from None

    async def _read_tool_results(
        self, scope: Scope, payload: JsonObject, key: Key | None, context: Context
    ) -> JsonObject:
        """A chat's body, once its tool results have been read."""
        policy = context.policy or self.policy(scope)
        readings = tool_readings(payload)
        if policy == "off" or not readings:
            return payload
        check_replies(len(readings), self.settings.max_choices)
        if self.access is not None and key is not None:
            await self.access.charge(key, len(readings))
        decisions = await self._read(scope, list(readings.values()), context)
        flagged = [i for i, one in zip(readings, decisions, strict=True) if one.decision.fired]
        if policy != "enforce":
            return payload
        return without_instructions(payload, flagged, self.settings.tool_results)

    def policy(self, scope: Scope) -> str:
        """The policy of requests that do not say; overridden for each engine."""
        return "enforce"

    async def screen(self, scope: Scope, messages: Sequence[Message]) -> None:
        """Have the engine read a conversation and not answer it; the decision goes into the
        context's decisions. Overridden for each engine.

        Raises:
            ApiError: it cannot be read.
        """
        raise ApiError(501, "this server does not read without answering")

    def error_for_client(self, error: Exception, context: Context) -> ApiError:
        """The answer to an error that nothing in the server has caught."""
        return not_recorded() if context.unrecorded else internal_error()

    async def _check_audit(self) -> None:
        """Turn a request away while what would be decided on it could not be kept."""
        if self.audit is None:
            return
        try:
            await asyncio.to_thread(self.audit.check)
        except AuditError as error:
            _log.error("%s", error)
            raise not_recorded() from error

    async def _checked_body(
        self, scope: Scope, payload: JsonObject, key: Key | None, context: Context
    ) -> bytes:
        """Fill ``context`` with what the client asks for, and give the body for the server."""
        options = payload.pop(FIELD, None)
        self._choose_switch(options, key, context)
        self._hold_to_policy(key, context)
        context.max_tokens = self.settings.max_tokens or None
        chats = (CHAT, f"{rights.API}chat")
        if self.settings.tool_results and get_route_path(scope) in chats and not switched_off():
            payload = await self._read_tool_results(scope, payload, key, context)
        self.check_fields(scope, payload, key, context)
        shape(get_route_path(scope), payload, context)
        # written anew, so that the server reads what has been checked and nothing else
        return json.dumps(payload).encode()

    def _choose_switch(self, options: Any, key: Key | None, context: Context) -> None:
        """Note the policy and bundle of a request: what its client may have and asks for.

        Raises:
            ApiError: 400, options that do not exist; 403, what this client may not ask for.
        """
        may, bundles = (
            (key.may, key.bundles)
            if key is not None
            else (self.settings.clients_may, self.settings.clients_bundles)
        )
        context.bundle = bundles[0] if key is not None and bundles else None
        if options is None:
            return
        if (
            not isinstance(options, dict)
            or set(options) - set(_OPTIONS)
            or not all(isinstance(value, str) for value in options.values())
        ):
            raise ApiError(400, f"{FIELD!r} takes an object with {' and '.join(_OPTIONS)}")
        policy, bundle = options.get("policy"), options.get("bundle")
        if policy is not None and policy not in may:
            raise ApiError(
                403, f"you may not set the SafeSwitch policy to {policy!r}", "permission_error"
            )
        if bundle is not None and bundle not in bundles:
            raise ApiError(
                403, f"you may not ask for the SafeSwitch bundle {bundle!r}", "permission_error"
            )
        context.policy, context.bundle = policy, bundle or context.bundle

    def _hold_to_policy(self, key: Key | None, context: Context) -> None:
        """Tell ``context`` what the policy has done with this client's requests."""
        policy = self.policy_in_force
        if policy is None:
            return
        policy.refresh()
        name = key.name if key is not None else None
        try:
            context.rules = policy.rules(name, context.bundle)
        except SettingError as error:
            raise ApiError(400, str(error)) from error
        context.allows = partial(policy.allows, name)
        context.policy_id = policy.id

    def _sees_scores(self, key: Key | None) -> bool:
        return key.scores or key.admin if key is not None else self.settings.clients_scores

    async def _thresholds(self, scope: Scope, payload: Any, key: Key | None) -> JsonObject:
        """Put thresholds in force, as an admin key asks; those in force.

        Raises:
            ApiError: no admin key, or thresholds that cannot be used.
        """
        admin = needs_admin(key, "thresholds are")
        bundle, wanted = wanted_thresholds(payload)
        try:
            in_force = await self.set_thresholds(scope, bundle, wanted)
        except SettingError as error:
            raise ApiError(400, str(error)) from error
        _log.warning("thresholds of %s set by %s: %s", bundle, admin.name, in_force)
        return {"bundle": bundle, "thresholds": in_force}

    async def set_thresholds(
        self, scope: Scope, bundle: str, thresholds: Mapping[str, float]
    ) -> dict[str, float]:
        """Put thresholds in force in the engine behind the server; overridden for each engine.

        Raises:
            SettingError: an unknown bundle or stage, or a value outside [0, 1].
        """
        raise ApiError(501, "this server's thresholds cannot be changed while it runs")

    def _make_context(self, key: Key | None, request_id: str, span: Span) -> Context:
        """What the front end must know of a request; each decision on it is recorded."""
        client = key.name if key is not None else None
        records = DecisionRecords(self.audit, self.settings.audit_text, request_id, client, span)
        context = Context(tell_refusals=self.settings.refusal_field)
        context.on_decision = partial(records.add, context)
        return context


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
        raise ApiError(400, "X-Request-Id takes up to 100 letters, digits and . _ : -")
    return str(given[0])
