"""A guarded server, in a process of its own for runs that look at it from outside, or on a thread
of this one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeswitch.engines.settings import GuardSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.server import GuardedServer, TransformersSettings

VLLM_FLAGS = (
    "--enforce-eager",
    "--max-model-len",
    "512",
    "--block-size",
    "32",
    "--num-gpu-blocks-override",
    "512",
)
"""A cache so small that all of its pages are soon in use: those that are touched later would look
like a leak."""
_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``; its output goes to ``log``."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    folder: Path,
    engine: str,
    *flags: str,
    model: str = "nano",
    switch: str = "nano",
    patience: int = 300,
) -> Iterator[Running]:
    """``safeswitch serve``, by default on nano with its switch, until the block ends; then SIGINT,
    and SIGKILL after a minute.

    Raises:
        RuntimeError: the server does not come up; the end of its log is in the message.
    """
    port, log = free_port(), folder / "log"
    own: Sequence[str] = VLLM_FLAGS if engine == "vllm" else ()
    command = [
        sys.executable, "-m", "safeswitch.cli.main", "serve", "--model", model, "--switch", switch,
        "--engine", engine, "--port", str(port), *own, *flags,
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **_ENVIRONMENT}, cwd=folder
        )
    running = Running(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait(running, patience)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(running: Running, patience: int) -> None:
    for _ in range(patience):
        if running.process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{running.url}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError("the server did not come up:\n" + running.log.read_text()[-3000:])


@contextmanager
def in_process(lm: LanguageModel, switch: str, **settings: Any) -> Iterator[str]:
    """The server on the transformers engine around a loaded model, on a thread of this process; its
    URL.

    Args:
        lm: The model, served under the name ``nano``.
        switch: Folder of its switch.
        settings: Of :class:`TransformersSettings`.
    """
    guard, own = (
        GuardSettings({"default": switch}),
        TransformersSettings(port=0, name="nano", grace=5.0, **settings),
    )
    server = GuardedServer(lm, guard, ServerSettings(), own)
    logging.getLogger("uvicorn.access").disabled = True
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not come up")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
