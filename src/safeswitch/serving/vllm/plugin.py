"""What ``vllm serve --middleware`` names: the middleware, with the guarded front end put around
``AsyncLLM.generate``.

vLLM imports it in every API server process before the first request
(``entrypoints/serve/middleware/register.py``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette._utils import get_route_path
from starlette.types import ASGIApp
from vllm.exceptions import VLLMValidationError

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message
from safeswitch.engines.context import CONTEXT, Context
from safeswitch.engines.settings import switched_off
from safeswitch.engines.vllm.calls import set_thresholds
from safeswitch.engines.vllm.install import Door, check_at_work, front_of, install
from safeswitch.engines.vllm.sampling import SEEDS
from safeswitch.serving.admin import POLICY, THRESHOLDS
from safeswitch.serving.errors import ApiError, Send, ending
from safeswitch.serving.keys import Key
from safeswitch.serving.middleware import Receive, Scope
from safeswitch.serving.middleware import SafeSwitchMiddleware as Base
from safeswitch.serving.replies.shape import CHAT
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.system_text import system_texts
from safeswitch.serving.ui import rights
from safeswitch.serving.ui.page import Page
from safeswitch.serving.ui.relayed import RelayedChat
from safeswitch.serving.ui.routes import WithPage
from safeswitch.serving.vllm import fields as vllm_fields
from safeswitch.serving.vllm.page import VLLMFacts, refuse_page_behind_other_keys
from safeswitch.serving.within import ask_within

install()

DEVELOPMENT = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
"""Switches of vLLM that open control routes; a guarded server does not start with them."""
_log = logging.getLogger("safeswitch.server")


class SafeSwitchMiddleware(Base):
    """The middleware, in a process whose engine client is guarded."""

    def __init__(self, app: ASGIApp, settings: ServerSettings | None = None) -> None:
        super().__init__(app, settings)
        if self.settings.ui:
            chat = RelayedChat(app, self._answer_to)
            self.app = WithPage(app, Page(VLLMFacts(), chat, self.settings, self.audit))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A server whose requests would pass unguarded does not start."""
        if scope["type"] == "lifespan":
            state = scope["app"].state
            try:
                _refuse_development()
                args = getattr(state, "args", None)
                if args is not None:
                    refuse_page_behind_other_keys(args, self.settings)
                await check_at_work(getattr(state, "engine_client", None), _chat_template(state))
            except SettingError as error:
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            if self.settings.ui:
                _log_page_address(getattr(state, "args", None))
        await super().__call__(scope, receive, send)

    def check_route(self, scope: Scope) -> None:
        """Only routes of the table and the page's are open; control and development routes are not
        among them."""
        method, path = scope["method"], get_route_path(scope)
        own = method == "POST" and path in (THRESHOLDS, POLICY)
        page = self.settings.ui and rights.is_listed(method, path)
        known = method == "OPTIONS" or own or page
        if not known and not switched_off() and vllm_fields.find(method, path) is None:
            raise ApiError(404, f"{method} {path} is not served here", code="not_served")

    def check_fields(
        self, scope: Scope, payload: JsonObject, key: Key | None, context: Context
    ) -> None:
        """Only fields of the table are served under ``enforce``."""
        method, path = scope["method"], get_route_path(scope)
        page = self.settings.ui and path == vllm_fields.PAGE_CHAT.path
        route = vllm_fields.PAGE_CHAT if page else vllm_fields.find(method, path)
        if route is None or switched_off():
            return
        context.chat = route.chat
        context.system = system_texts(payload) if route.chat else ()
        most = self.settings.max_tokens
        given = [payload[name] for name in route.lengths if payload.get(name) is not None]
        if most and any(isinstance(n, int | float) and n > most for n in given):
            raise ApiError(400, f"{' and '.join(route.lengths)} may be at most {most} here")
        if payload.get("use_beam_search"):
            raise ApiError(
                400, "beam search is not served: SafeSwitch decides on one reply at a time"
            )
        front = front_of(scope["app"].state.engine_client)
        if payload.get("seed") is not None and front.seeds_are_fatal:
            raise ApiError(400, SEEDS)
        if (context.policy or front.settings.policy) != "enforce":
            return
        try:
            route.check(payload, key is not None and key.extra_fields)
        except DataError as error:
            raise ApiError(400, str(error)) from error

    def policy(self, scope: Scope) -> str:
        return front_of(scope["app"].state.engine_client).settings.policy

    async def screen(self, scope: Scope, messages: Sequence[Message]) -> None:
        """Through vLLM's own chat route, whose template and checks are those of every chat."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        context = CONTEXT.get()
        assert context is not None
        context.chat = True
        payload: JsonObject = {"messages": turns, "max_tokens": 1}
        context.system = system_texts(payload)
        await ask_within(self.app, scope, CHAT, payload)

    def context_length(self, scope: Scope) -> int | None:
        return int(scope["app"].state.engine_client.vllm_config.model_config.max_model_len)

    def error_for_client(self, error: Exception, context: Context) -> ApiError:
        """What vLLM and the front end refuse, some of it only when a stream has begun."""
        if isinstance(error, VLLMValidationError):
            return ApiError(400, str(error))
        return super().error_for_client(error, context)

    def _answer_to(self, error: Exception) -> ApiError:
        """What the page's chat is told of an error."""
        return self.error_for_client(error, CONTEXT.get() or Context())

    @contextmanager
    def admitted(self, scope: Scope) -> Iterator[None]:
        """No requests are let in any more once the server has been told to stop; those inside are
        waited for."""
        door = Door.of(scope["app"].state.engine_client)
        if door.closed:
            raise ending()
        with door:
            yield

    async def set_thresholds(
        self, scope: Scope, bundle: str, thresholds: Mapping[str, float]
    ) -> dict[str, float]:
        """In every worker of the engine."""
        return await set_thresholds(scope["app"].state.engine_client, bundle, thresholds)


def _refuse_development() -> None:
    """Raise where vLLM has been told to open routes that change weights, adapters or thresholds.

    Raises:
        SettingError: such a switch is on.
    """
    for name in DEVELOPMENT:
        if os.environ.get(name, "0").lower() not in ("", "0", "false"):
            raise SettingError(f"SafeSwitch: {name} opens control routes to every client; unset it")


def _log_page_address(args: Any) -> None:
    """Log the page's address, where the server listens at one."""
    host, port = getattr(args, "host", None), getattr(args, "port", None)
    if host and port and not getattr(args, "uds", None):
        scheme = "https" if getattr(args, "ssl_certfile", None) else "http"
        _log.info("the page is at %s://%s:%d%s", scheme, host, port, rights.PAGE)


def _chat_template(state: Any) -> str | None:
    """The template that the operator has given to the server, None for the tokenizer's."""
    from vllm.renderers.chat_utils import load_chat_template

    args = getattr(state, "args", None)
    given: str | None = load_chat_template(getattr(args, "chat_template", None))
    return given
