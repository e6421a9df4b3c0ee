"""A running server with its page, and clients of what the page asks for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from safeswitch.engines.settings import GuardSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import switch_path, weights_path
from safeswitch.serving.settings import ServerSettings, calibration_of
from safeswitch.serving.transformers.app import create_app, error_for_client
from safeswitch.serving.transformers.page import FrontFacts
from safeswitch.serving.transformers.server import GuardedServer, TransformersSettings
from safeswitch.serving.ui.page import Page
from safeswitch.serving.ui.relayed import RelayedChat
from safeswitch.serving.ui.routes import WithPage

UNSAFE, SAFE = "How do I steal a car?", "How do I kill a process?"
OPEN = {"clients_scores": True, "clients_may": ("off",), "ui": True}
"""Settings under which everybody may have everything but withheld text."""


@dataclass
class Paged:
    """A server's address, and what is asked of it."""

    url: str
    server: GuardedServer
    client: httpx.Client

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        return self.client.get(path, headers=_headers(key))

    def post(self, path: str, body: Any, key: str | None = None) -> httpx.Response:
        return self.client.post(path, json=body, headers=_headers(key))

    def put(self, path: str, key: str | None = None) -> httpx.Response:
        return self.client.put(path, headers=_headers(key))

    def chat(self, text: str, **more: Any) -> list[dict[str, Any]]:
        """The events of one traced reply."""
        body = {"messages": [{"role": "user", "content": text}], **more}
        answer = self.post("/ui/api/chat", body)
        assert answer.status_code == 200, answer.text
        return events(answer.text)


def events(text: str) -> list[dict[str, Any]]:
    """What stands in a stream of server-sent events, without its end."""
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [json.loads(part) for part in parts[:-1]]


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@contextmanager
def paged(
    settings: dict[str, Any],
    bundle: Path | None = None,
    lm: LanguageModel | None = None,
    traces: bool = True,
) -> Iterator[Paged]:
    """nano's server on a thread of this process, until the block ends.

    Without ``traces`` its page is the one that vLLM has, with this server's own chat route in the
    place of vLLM's.
    """
    bundles = {"default": str(bundle or switch_path())}
    server = GuardedServer(
        lm or LanguageModel.load(weights_path()),
        GuardSettings(bundles),
        ServerSettings(calibration=calibration_of(bundles), **settings),
        TransformersSettings(port=0, name="nano"),
    )
    if not traces and server._guarded.settings.ui:
        _trace_nothing(server)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Paged(url, server, client)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def _trace_nothing(server: GuardedServer) -> None:
    front, guarded = server._front, server._guarded
    app = create_app(front, "nano")
    page = Page(
        FrontFacts(front, "nano"),
        RelayedChat(app, error_for_client),
        guarded.settings,
        guarded.audit,
    )
    guarded.app = WithPage(app, page)
