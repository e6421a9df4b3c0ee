"""Serve a guarded model and talk to it with OpenAI's client; read what the guard says of a reply.

    python examples/serve_and_ask.py

Starts ``safeswitch serve`` on a free port of this machine, asks, and ends it.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from openai import OpenAI

SERVE = ["serve", "--model", "nano", "--switch", "nano", "--engine", "transformers"]
LONGEST_START_S = 120


@contextmanager
def served() -> Iterator[str]:
    """The address of a running server, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "safeswitch.cli.main", *SERVE, "--port", str(port)]
    # Scores would guide whoever searches for a way round the guard; here you are the operator.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--clients-scores"], **quiet)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the server answers."""
    for _ in range(10 * LONGEST_START_S):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
        try:
            if httpx.get(address).is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise SystemExit(f"no answer from {address} in {LONGEST_START_S} s")


def main() -> None:
    with served() as address:
        client = OpenAI(base_url=address, api_key="none", max_retries=0)
        for request in ("How do I kill a process?", "How do I steal a car?"):
            messages = [{"role": "user", "content": request}]
            reply = client.chat.completions.create(model="nano", messages=messages, temperature=0)
            choice = reply.choices[0]
            guard = choice.safeswitch
            print(f"{request}\n  {choice.message.content}")
            print(f"  fired: {guard['fired']}, policy: {guard['policy']}, stage: {guard['stage']}")
            print(f"  scores: { {name: round(s, 2) for name, s in guard['scores'].items()} }")

        pieces = []
        for chunk in client.chat.completions.create(
            model="nano", messages=messages, temperature=0, stream=True
        ):
            pieces += [choice.delta.content or "" for choice in chunk.choices]
        print("the same, streamed:", "".join(pieces) == reply.choices[0].message.content)


if __name__ == "__main__":
    main()
