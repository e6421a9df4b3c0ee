"""A SafeSwitch server on a socket whose engine flags whatever asks to be ignored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.serving.test_checks import Scripted, instructs


@contextmanager
def on_a_socket(app: Any) -> Iterator[str]:
    """The address of an ASGI application that runs on a thread until the block ends."""
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def served(**settings: Any) -> Iterator[tuple[str, Scripted]]:
    """Its address, and what it was given to read."""
    app = Scripted(instructs, **settings)
    with on_a_socket(app) as url:
        yield url, app
