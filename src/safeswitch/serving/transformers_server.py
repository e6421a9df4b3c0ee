"""The guarded OpenAI-compatible server on the embedded transformers engine: its flags, its start and its end."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from safeswitch.core.errors import SettingError
from safeswitch.engines.vllm.settings import GuardSettings
from safeswitch.models.chat import read_template
from safeswitch.models.language_model import LanguageModel
from safeswitch.serving.batcher import BatchSettings
from safeswitch.serving.middleware import SafeSwitchMiddleware, Scope
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers_app import create_app
from safeswitch.serving.transformers_front import FrontEnd


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
            raise SettingError(f"TransformersSettings: port must lie in [0, 65535]; got {self.port}")
        if not 0 <= self.grace <= 3600:
            raise SettingError(f"TransformersSettings: grace must lie in [0, 3600] seconds; got {self.grace}")


MAX_TOKENS = 1024
"""Longest reply where the operator sets no limit: whoever comes while a batch runs waits for it."""


class Middleware(SafeSwitchMiddleware):
    """The middleware, with the front end behind it."""

    own_errors = True

    def __init__(self, front: FrontEnd, name: str, settings: ServerSettings) -> None:
        # the front end knows the prompt's length and so holds replies to their limit itself
        super().__init__(create_app(front, name), replace(settings, max_tokens=0))
        self._front = front

    def context_length(self, scope: Scope) -> int | None:
        return self._front.lm.context_length

    async def set_thresholds(self, scope: Scope, bundle: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        return self._front.set_thresholds(bundle, thresholds)


class GuardedServer(uvicorn.Server):
    """uvicorn with the guarded application: what runs is ended, and the audit closed, before the process goes.

    Args:
        lm: The loaded model.
        guard: Bundles and policy.
        server: Settings of the middleware.
        settings: Settings of the process.

    Raises:
        AuditError: decisions cannot be recorded.
    """

    def __init__(
        self, lm: LanguageModel, guard: GuardSettings, server: ServerSettings, settings: TransformersSettings
    ) -> None:
        self._front = FrontEnd(lm, guard, settings.batching, server.max_tokens or MAX_TOKENS)
        self._guarded = Middleware(self._front, settings.name, server)
        if self._guarded.audit is not None:
            self._guarded.audit.check()
        self._grace = settings.grace
        keyfile, certfile = settings.tls or (None, None)
        app = CORSMiddleware(
            self._guarded, allow_origins=settings.allowed_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["X-Request-Id"],
        ) if settings.allowed_origins else self._guarded  # fmt: skip
        super().__init__(uvicorn.Config(
            app, host=settings.host, port=settings.port, ssl_keyfile=keyfile, ssl_certfile=certfile,
            timeout_graceful_shutdown=int(settings.grace) + 10, log_level="info", server_header=False,
        ))  # fmt: skip

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, let running ones end within the grace, end the others cleanly."""
        ending = asyncio.create_task(self._front.stop(self._grace))
        await super().shutdown(sockets)
        await ending
        if self._guarded.audit is not None:
            self._guarded.audit.close()


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingError(f"safeswitch serve --engine transformers: {message}")


def _origins(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(origin, str) for origin in found):
        raise ValueError
    return tuple(found)


def parse_flags(flags: Sequence[str], name: str) -> tuple[TransformersSettings, dict[str, Any]]:
    """Settings of the process, and options of :meth:`LanguageModel.load`, from command-line flags.

    Args:
        flags: As on the command line.
        name: Name under which the model is served where no flag says another.

    Raises:
        SettingError: an unknown flag, or a value that cannot be used.
    """
    own, batching = TransformersSettings(), BatchSettings()
    parser = _Flags(prog="safeswitch serve --engine transformers", allow_abbrev=False)
    parser.add_argument("--host", default=own.host)
    parser.add_argument("--port", type=int, default=own.port)
    parser.add_argument("--served-model-name", default=name)
    parser.add_argument("--batch-size", type=int, default=batching.batch_size, help="most choices run together")
    parser.add_argument("--max-wait-ms", type=float, default=batching.max_wait_ms, help="wait of the first for company")
    parser.add_argument("--queue", type=int, default=batching.queue, help="most choices that wait")
    parser.add_argument("--grace", type=float, default=own.grace, help="seconds to end running replies in")
    parser.add_argument("--allowed-origins", type=_origins, default=own.allowed_origins, help="JSON list, for browsers (CORS)")
    parser.add_argument("--ssl-keyfile")
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device-map")
    parser.add_argument("--revision")
    parser.add_argument("--chat-template", help="Jinja template file, or 'plain' for base models; default: the tokenizer's")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    given = parser.parse_args(list(flags))
    if (given.ssl_keyfile is None) != (given.ssl_certfile is None):
        parser.error("--ssl-keyfile and --ssl-certfile belong together")
    settings = TransformersSettings(
        host=given.host, port=given.port, name=given.served_model_name, grace=given.grace,
        allowed_origins=given.allowed_origins, batching=BatchSettings(given.batch_size, given.max_wait_ms, given.queue),
        tls=(given.ssl_keyfile, given.ssl_certfile) if given.ssl_keyfile is not None else None,
    )
    load = {name: getattr(given, name) for name in ("dtype", "device_map", "revision")}
    load["trust_remote_code"] = given.trust_remote_code or None
    load["chat_template"] = read_template(given.chat_template)
    return settings, {name: value for name, value in load.items() if value is not None}


def serve(model: str | Path, name: str, guard: GuardSettings, server: ServerSettings, flags: Sequence[str]) -> None:
    """Run the server until it is told to stop."""
    settings, load = parse_flags(flags, name)
    GuardedServer(LanguageModel.load(model, **load), guard, server, settings).run()
