"""What the guard costs in the server on the transformers engine: throughput and time to the first token over HTTP.

    python benchmarks/serving_transformers.py [--quick] [--streams 32]

Two servers on nano with one thread each, one guarded and one with ``--policy off``, get the same safe streamed requests in
turn, all at once; the ratio is the median over pairs, with its 95 % interval from order statistics. Requests that the gate
would flag are left out beforehand, so that both servers write the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
from benchmarks.overhead import median_interval
from benchmarks.running import serving

from safeswitch.core.types import Example
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.switch import Switch

NEW = 48


def safe_requests(count: int) -> list[Example]:
    """Requests that the gate lets pass, by falling length of their reply."""
    examples = [*load_suite("lookalike", 150, 0), *load_suite("ordinary", 50, 0)]
    engine, switch = TransformersEngine.load(weights_path()), Switch.from_pretrained(switch_path())
    replies = engine.generate(examples, switch, max_new_tokens=NEW, do_sample=False)
    passed = [(len(r.token_ids), i) for i, r in enumerate(replies) if not r.decision.fired]
    return [examples[i] for _, i in sorted(passed, reverse=True)[:count]]


async def streams(url: str, examples: list[Example]) -> tuple[float, float]:
    """Seconds for all streams at once, and median seconds to the first text."""
    firsts: list[float] = []
    start = time.perf_counter()

    async def one(client: httpx.AsyncClient, example: Example) -> None:
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        asked: dict[str, Any] = {"model": "nano", "messages": turns, "max_tokens": NEW, "temperature": 0, "stream": True}
        seen = False
        async with client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
            async for line in response.aiter_lines():
                if not seen and '"content": "' in line and '"content": ""' not in line:
                    seen = True
                    firsts.append(time.perf_counter() - start)

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client, example) for example in examples))
    return time.perf_counter() - start, statistics.median(firsts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--streams", type=int, default=32)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rounds = 7 if args.quick else 25
    examples = safe_requests(args.streams)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        flags = ("--batch-size", str(args.streams))
        with (
            serving(Path(one), "transformers", *flags) as guarded,
            serving(Path(two), "transformers", "--policy", "off", *flags) as plain,
        ):
            ratios, firsts = [], []
            for i in range(rounds + 1):
                order = (plain, guarded) if i % 2 else (guarded, plain)
                took = {server.url: asyncio.run(streams(server.url, examples)) for server in order}
                if i:  # the first round warms both up
                    ratios.append(took[plain.url][0] / took[guarded.url][0])
                    firsts.append(took[guarded.url][1] / took[plain.url][1])
                    rate = args.streams / took[guarded.url][0]
                    print(f"round {i}: guarded {rate:.1f} replies/s, throughput ratio {ratios[-1]:.3f}", flush=True)
    print("| | guarded / off | 95 % interval |\n|---|---|---|")
    for name, values in (("throughput", ratios), ("time to first text", firsts)):
        middle, low, high = median_interval(values)
        print(f"| {name}, {args.streams} streams | {middle:.3f} | {low:.3f}-{high:.3f} |")


if __name__ == "__main__":
    main()
