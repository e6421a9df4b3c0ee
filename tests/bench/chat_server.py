"""A real HTTP server in OpenAI's format whose answers a test writes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Answer = Callable[
    [dict[str, Any]], "str | bytes | dict[str, Any] | tuple[int, str | dict[str, Any]]"
]


@contextmanager
def chat_server(answer: Answer) -> Iterator[str]:
    """Its address.

    ``answer`` is given a request's body, with the authorization header as ``key``. It gives the
    reply's text, or a status and an error's text or fields, or a whole body: fields of JSON, or the
    bytes of a page.
    """
    starlette = pytest.importorskip("starlette.applications", reason="starlette is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    pytest.importorskip("openai", reason="openai is not installed")
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def complete(request: Request) -> Response:
        body = await request.json()
        said = answer({**body, "key": request.headers["authorization"]})
        if isinstance(said, tuple):
            about = said[1] if isinstance(said[1], dict) else {"message": said[1], "type": "error"}
            return JSONResponse({"error": about}, said[0], {"retry-after-ms": "1"})
        if isinstance(said, bytes):
            return Response(
                said, media_type="text/html" if said.startswith(b"<") else "application/json"
            )
        if isinstance(said, dict):
            return JSONResponse(said)
        return JSONResponse({
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
            "usage": {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40},
        })  # fmt: skip

    app = starlette.Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        running.should_exit = True
        thread.join()
