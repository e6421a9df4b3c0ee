"""Do memory or file handles of the server grow under a long load?

    python benchmarks/soak.py [--engine vllm|transformers] [--minutes 10] [--streams 32]

The server on nano, with an audit; so many streams at all times, a part of them left early. Memory
(resident) and open files of each of the server's processes are sampled every 5 seconds. The first
fifth warms up; over the rest the growth is the slope of a straight line (Theil-Sen) times its
length, against the level at its start.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import psutil
from benchmarks.leak import Told, one, told
from benchmarks.running import serving
from scipy.stats import theilslopes

Sample = dict[str, tuple[float, int]]
"""Megabytes and open files by process."""


def sample(pid: int) -> Sample:
    """A process and all below it, by name and number."""
    whole = psutil.Process(pid)
    found = {}
    for i, p in enumerate([whole, *whole.children(recursive=True)]):
        found[f"{i} {p.name()}"] = (p.memory_info().rss / 2**20, p.num_fds())
    return found


async def soak(
    url: str, pid: int, facts: list[Told], seconds: float, streams: int
) -> tuple[list[tuple[float, Sample]], Counter[str]]:
    """Keep ``streams`` streams going; samples of time, megabytes and files, and how streams
    ended."""
    draw, ends, start = random.Random(0), Counter[str](), time.monotonic()
    samples: list[tuple[float, Sample]] = []
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=httpx.Limits(max_connections=streams)
    ) as client:

        async def stream() -> None:
            while time.monotonic() - start < seconds:
                how = draw.choice(("reads to its end", "reads to its end", "disconnects", "aborts"))
                ends[await one(client, facts[draw.randrange(len(facts))], draw, how, 0.2)] += 1

        async def watch() -> None:
            while time.monotonic() - start < seconds:
                samples.append((time.monotonic() - start, sample(pid)))
                await asyncio.sleep(5)

        await asyncio.gather(watch(), *(stream() for _ in range(streams)))
    return samples, ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument(
        "--policy", default="enforce", help="off: what the server does without the guard"
    )
    args = parser.parse_args()
    facts = told(40)
    if args.policy == "off":
        facts = [replace(f, shown=f.untouched) for f in facts]
    with tempfile.TemporaryDirectory() as folder:
        audit = f"sqlite:///{Path(folder) / 'audit.db'}"
        with serving(
            Path(folder), args.engine, "--audit", audit, "--policy", args.policy
        ) as running:
            samples, ends = asyncio.run(
                soak(running.url, running.process.pid, facts, 60 * args.minutes, args.streams)
            )
    kept = samples[len(samples) // 5 :]
    print(
        f"{sum(ends.values())} streams in {args.minutes:g} minutes: "
        + ", ".join(f"{n} {e}" for e, n in sorted(ends.items()))
    )
    print(
        "| | at the start | at the end | growth over the line | 95 % interval |\n|---|---|---|---|---|"
    )
    times = [t for t, _ in kept]
    length = times[-1] - times[0]
    for name in kept[-1][1]:
        for column, unit in ((0, "MB"), (1, "open files")):
            values = [float(one[name][column]) for _, one in kept if name in one]
            fit = theilslopes(values, times[-len(values) :])
            low, high = fit.low_slope * length, fit.high_slope * length
            ends = f"{values[0]:.0f} | {values[-1]:.0f}"
            print(
                f"| {name}, {unit} | {ends} | {fit.slope * length:+.1f} | {low:+.1f} to {high:+.1f} |"
            )


if __name__ == "__main__":
    main()
