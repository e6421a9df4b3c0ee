"""The guarded OpenAI-compatible server on the embedded transformers engine: its settings, its start
and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Message
from safeswitch.engines.settings import GuardSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.serving.errors import ending
from safeswitch.serving.middleware import SafeSwitchMiddleware, Scope
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.app import create_app
from safeswitch.serving.transformers.batcher import BatchSettings, Closed
from safeswitch.serving.transformers.front_end import FrontEnd, Sampling
from safeswitch.serving.transformers.page import FrontFacts, TracedChat
from safeswitch.serving.ui.page import Page
from safeswitch.serving.ui.rights import PAGE
from safeswitch.serving.ui.routes import WithPage

_log = logging.getLogger("safeswitch.server")


@dataclass(frozen=True)
class TransformersSettings:
    """Settings of the server process.

    Args:
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.
        name: Name under which the model is served.
        grace: Seconds that running replies have to end when the server is told to stop.
        batching: How requests are put together.
        tls: Key and certificate file; None speaks plain HTTP.
        allowed_origins: Where pages of browsers may ask from (CORS); none by default.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "model"
    grace: float = 30.0
    batching: BatchSettings = field(default_factory=BatchSettings)
    tls: tuple[str, str] | None = None
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise SettingError(
                f"TransformersSettings: port must lie in [0, 65535]; got {self.port}"
            )
        if not 0 <= self.grace <= 3600:
            raise SettingError(
                f"TransformersSettings: grace must lie in [0, 3600] seconds; got {self.grace}"
            )


MAX_TOKENS = 1024
"""Longest reply where the operator sets no limit: whoever comes while a batch runs waits for it."""


class Middleware(SafeSwitchMiddleware):
    """The middleware, with the front end behind it."""

    own_errors = True

    def __init__(self, front: FrontEnd, name: str, settings: ServerSettings) -> None:
        # the front end knows the prompt's length and so holds replies to their limit itself
        app = create_app(front, name)
        super().__init__(app, replace(settings, max_tokens=0))
        self._front = front
        if settings.ui:
            facts, chat = FrontFacts(front, name), TracedChat(front, settings.ui_pilot_text)
            self.app = WithPage(app, Page(facts, chat, settings, self.audit))

    def context_length(self, scope: Scope) -> int | None:
        return self._front.lm.context_length

    def policy(self, scope: Scope) -> str:
        return self._front.guard.policy

    async def screen(self, scope: Scope, messages: Sequence[Message]) -> None:
        reading = await self._front.begin([list(messages)], Sampling(), limit=1)
        try:
            await asyncio.gather(*reading.replies)
        except Closed:
            raise ending() from None
        finally:
            reading.leave()

    async def set_thresholds(
        self, scope: Scope, bundle: str, thresholds: Mapping[str, float]
    ) -> dict[str, float]:
        return self._front.set_thresholds(bundle, thresholds)


class GuardedServer(uvicorn.Server):
    """uvicorn with the guarded application: what runs is ended, and the audit closed, before the
    process goes.

    Args:
        lm: The loaded model.
        guard: Bundles and policy.
        server: Settings of the middleware.
        settings: Settings of the process.

    Raises:
        AuditError: decisions cannot be recorded.
    """

    def __init__(
        self,
        lm: LanguageModel,
        guard: GuardSettings,
        server: ServerSettings,
        settings: TransformersSettings,
    ) -> None:
        self._front = FrontEnd(lm, guard, settings.batching, server.max_tokens or MAX_TOKENS)
        self._guarded = Middleware(self._front, settings.name, server)
        if self._guarded.audit is not None:
            self._guarded.audit.check()
        self._grace = settings.grace
        keyfile, certfile = settings.tls or (None, None)
        app = (
            CORSMiddleware(
                self._guarded,
                allow_origins=settings.allowed_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id"],
            )
            if settings.allowed_origins
            else self._guarded
        )
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                ssl_keyfile=keyfile,
                ssl_certfile=certfile,
                timeout_graceful_shutdown=int(settings.grace) + 10,
                log_level="info",
                server_header=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where the page is."""
        await super().startup(sockets)
        if self.started and self._guarded.settings.ui:
            scheme = "https" if self.config.is_ssl else "http"
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            _log.info("the page is at %s://%s:%d%s", scheme, host, port, PAGE)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, let running ones end within the grace, end the others cleanly."""
        ending = asyncio.create_task(self._front.stop(self._grace))
        await super().shutdown(sockets)
        await ending
        if self._guarded.audit is not None:
            self._guarded.audit.close()


def serve(
    model: str | Path,
    guard: GuardSettings,
    server: ServerSettings,
    settings: TransformersSettings,
    load: JsonMapping,
) -> None:
    """Run the server until it is told to stop.

    Args:
        model: Model folder or hub id.
        guard: Bundles and policy.
        server: Settings of the middleware.
        settings: Settings of the process.
        load: Options of :meth:`LanguageModel.load`.
    """
    GuardedServer(LanguageModel.load(model, **load), guard, server, settings).run()
