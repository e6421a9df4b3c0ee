"""What do bad bodies cost those who send good ones?

    python benchmarks/bad_bodies.py [--engine vllm|transformers] [--connections 32] [--rounds 3] [--seconds 6] [--apart]

The server on nano. Four honest clients chat one request after the other; in every second spell 32
connections send bodies of each bad kind as well, as fast as they are answered, at most so many in a
spell. The senders of bad bodies are a process of their own, of the lowest priority: what they
themselves take of the machine is none of the server's doing. Spells with and without take turns, so
that the ratio of the two 95th percentiles is of one run. Memory is that of the server's processes,
resident, after the warm-up and at the end. Everything stays on 127.0.0.1. With ``--apart`` the
kinds take turns instead of coming all at once, and the ratio is told for each. Ends with exit code
1 on an answer of 500 and above, on an honest chat that is not answered, and above the goals: a
ratio of 1.5, a tenth more memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import numpy as np
import psutil
from benchmarks.leak import body
from benchmarks.running import Running, serving

from safeswitch.nano.suites import load_suite

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
)
HONEST, NEW = 4, 24
MEGABYTE = (1 << 20) - 100
MOST = 2000
"""Bad bodies in one spell."""
Kind = tuple[str, bytes, dict[str, str]]
"""Path, body and headers."""
JSON = {"content-type": "application/json"}


def _chat(**fields: Any) -> Kind:
    asked = {
        "model": "nano",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "Hi"}],
        **fields,
    }
    return CHAT, json.dumps(asked).encode(), JSON


def _raw(text: str | bytes, path: str = CHAT, **headers: str) -> Kind:
    return path, text.encode() if isinstance(text, str) else text, {**JSON, **headers}


def _prompt(prompt: Any) -> Kind:
    return (
        COMPLETIONS,
        json.dumps({"model": "nano", "max_tokens": 4, "prompt": prompt}).encode(),
        JSON,
    )


def kinds() -> dict[str, Kind]:
    """A body of each bad kind."""
    return {
        "half an object": _raw('{"model": '), "no object": _raw("[1]"), "20,000 brackets": _raw("[" * 20_000),
        "brackets to a megabyte": _raw('{"a": ' + "[" * (MEGABYTE // 2)),
        "objects to a megabyte": _raw('{"a": [' + "{}," * (MEGABYTE // 3 - 10) + "{}]}"),
        "half a pair": _raw('{"model": "\\ud800"}'), "5,000 digits": _raw('{"n": ' + "1" * 5000 + "}"),
        "NaN": _raw('{"temperature": NaN}'), "a name twice": _raw('{"model": "a", "model": "b"}'),
        "no UTF-8": _raw(b'{"model": "\xff"}'), "another type": _raw("{}", **{"content-type": "text/plain"}),
        "fields to a megabyte": _raw("{" + ",".join(f'"{i}":0' for i in range(MEGABYTE // 11)) + "}"),
        "numbers to a megabyte": _raw('{"a": [' + "1," * (MEGABYTE // 2 - 10) + "1]}"),
        "fractions to a megabyte": _raw('{"a": [' + "1e5," * (MEGABYTE // 4 - 10) + "1]}"),
        "messages to their bound": _chat(messages=[{"role": "user", "content": "Hi"}] * 4000),
        "larger than is taken": _raw(" " * (MEGABYTE + 200)), "tiny temperature": _chat(temperature=1e-300),
        "n of 1,500": _chat(n=1500), "long stop strings": _chat(stop=["ab" * 30_000] * 4),
        "200,000 prompts": _prompt(["a"] * 200_000), "200,000 tokens": _prompt([5] * 200_000),
        "a prompt of a megabyte": _prompt("word " * (MEGABYTE // 5 - 20)),
        "a chat of a megabyte": _chat(messages=[{"role": "user", "content": "word " * (MEGABYTE // 5 - 40)}]),
        "a megabyte to tokenise": _raw(json.dumps({"prompt": "word " * (MEGABYTE // 5 - 20)}), TOKENIZE),
        "a megabyte to put together": _raw(json.dumps({"tokens": [5] * (MEGABYTE // 3 - 20)}), DETOKENIZE),
        "a token that does not exist": _prompt([10**9]),
    }  # fmt: skip


def send(url: str, chosen: Sequence[Kind], connections: int, seconds: float, told: Any) -> None:
    """Send bad bodies until the time is over, on so many connections; puts a count of what came
    back into ``told``."""
    os.nice(19)

    async def everything() -> Counter[int]:
        ends, left, end = Counter[int](), iter(range(MOST)), time.monotonic() + seconds
        limits = httpx.Limits(max_connections=connections)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

            async def one() -> None:
                while time.monotonic() < end and (i := next(left, None)) is not None:
                    path, raw, headers = chosen[i % len(chosen)]
                    try:
                        ends[
                            (await client.post(path, content=raw, headers=headers)).status_code
                        ] += 1
                    except (
                        httpx.TransportError
                    ):  # 413, and the connection is closed upon the rest of the body
                        ends[0] += 1

            await asyncio.gather(*(one() for _ in range(connections)))
        return ends

    told.put(dict(asyncio.run(everything())))


async def chats(url: str, seconds: float) -> list[float]:
    """Seconds that each honest chat took, of clients that send one after the other.

    Raises:
        AssertionError: one was not answered.
    """
    asked = [body(example) | {"max_tokens": NEW} for example in load_suite("ordinary", 40, 0)]
    took: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def one(first: int) -> None:
            end, i = time.monotonic() + seconds, first
            while time.monotonic() < end:
                start = time.perf_counter()
                answer = await client.post(CHAT, json=asked[i % len(asked)])
                took.append(time.perf_counter() - start)
                assert answer.status_code == 200, answer.text
                i += 1

        await asyncio.gather(*(one(7 * k) for k in range(HONEST)))
    return took


def spell(
    url: str, chosen: Sequence[Kind], connections: int, seconds: float
) -> tuple[list[float], Counter[int]]:
    """One spell of honest chats, with bad bodies beside them where there are any."""
    if not chosen:
        return asyncio.run(chats(url, seconds)), Counter()
    context = multiprocessing.get_context("fork")  # this process has one thread, and much to import
    told = context.SimpleQueue()
    sender = context.Process(target=send, args=(url, chosen, connections, seconds + 1, told))
    sender.start()
    time.sleep(1)
    took = asyncio.run(chats(url, seconds))
    ends = Counter[int](told.get())
    sender.join()
    assert not any(status >= 500 for status in ends), ends
    return took, ends


def megabytes(running: Running) -> float:
    """Resident memory of the server's processes."""
    whole = psutil.Process(running.process.pid)
    return sum(p.memory_info().rss for p in (whole, *whole.children(recursive=True))) / 2**20


def measure(
    url: str, chosen: Sequence[Kind], connections: int, rounds: int, seconds: float
) -> tuple[str, float]:
    """The figures of some kinds, for the report, and the ratio."""
    took: dict[bool, list[float]] = {False: [], True: []}
    ends = Counter[int]()
    for i in range(rounds):
        for bad in (False, True) if i % 2 == 0 else (True, False):
            spent, came = spell(url, chosen if bad else (), connections, seconds)
            took[bad] += spent
            ends += came
    without, beside = (float(np.quantile(took[bad], 0.95)) for bad in (False, True))
    statuses = ", ".join(
        f"{count} x {status or 'cut off'}" for status, count in sorted(ends.items())
    )
    counts = f"{len(took[False])} and {len(took[True])} chats"
    line = f"p95 {1000 * without:.0f} ms, beside bad bodies {1000 * beside:.0f} ms: x{beside / without:.2f}"
    return f"{line} ({counts}; bad bodies: {statuses})", beside / without


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="transformers", choices=("vllm", "transformers"))
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--apart", action="store_true", help="The kinds one after the other.")
    args = parser.parse_args()
    sets = (
        {name: [kind] for name, kind in kinds().items()}
        if args.apart
        else {"all kinds": list(kinds().values())}
    )
    with tempfile.TemporaryDirectory() as name, serving(Path(name), args.engine) as running:
        spell(running.url, list(kinds().values()), args.connections, args.seconds)
        before, ratios = megabytes(running), []
        for label, chosen in sets.items():
            line, ratio = measure(running.url, chosen, args.connections, args.rounds, args.seconds)
            ratios.append(ratio)
            print(f"{label}: {line}", flush=True)
        after = megabytes(running)
        print(f"memory: {before:.0f} MB after the warm-up, {after:.0f} MB at the end")
    if max(ratios) > 1.5 or after > 1.1 * before:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
