"""What the guard costs in serving: throughput and time to the first token, guarded against
unguarded, in both engines.

    python benchmarks/serving.py [--quick] [--streams 64] [--only vllm,transformers] [--enforce-eager]

A random Llama of about 100 million parameters on the CPU, safe streamed traffic, pairs in turn, all
in one run: a stock vLLM engine and a guarded one; the server on the transformers engine with
``--policy off`` and guarded, over HTTP. Of two that run side by side the one started second may be
favoured, so there are two sittings, in which they are started in either order. The gate is two
stages over three layers, with n-grams beside stage 1; it never fires. Goal: throughput at least
0.97 of the unguarded. The time to the first token is, over HTTP, that to the first event: a random
model's tokens need not be text.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import torch
from benchmarks.overhead import LAYERS, PILOT, fitted, median_interval, model_100m
from benchmarks.running import serving

from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.switch.actuators.base import LowRankHead
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import BaseModel, Switch


def safe_switch(lm: Any) -> Switch:
    first = fitted({"kind": "fusion", "readers": [
        {"kind": "layer_average", "points": [str(ReadPoint(layer, PROMPT_END)) for layer in LAYERS]}, {"kind": "ngram"},
    ]}, lm.hidden_size)  # fmt: skip
    second = fitted({
        "kind": "layer_average", "points": [str(ReadPoint(layer, Position("pilot", PILOT))) for layer in LAYERS],
    }, lm.hidden_size)  # fmt: skip
    head = LowRankHead(0.01 * torch.randn(1, lm.hidden_size), 0.01 * torch.randn(lm.vocab_size, 1))
    return Switch(Gate(stage1=Stage(first, 1.0), stage2=Stage(second, 1.0)), head, BaseModel.of(lm))


async def engine_streams(
    engine: Any, rows: list[list[int]], new: int, tag: str
) -> tuple[float, float]:
    """Seconds for all streams of a vLLM engine, and the median time to the first token."""
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    firsts: list[float] = []
    start = time.perf_counter()

    async def one(i: int) -> None:
        params = SamplingParams(
            max_tokens=new, ignore_eos=True, temperature=0.0, output_kind=RequestOutputKind.DELTA
        )
        seen = False
        async for out in engine.llm.generate(tokens_input(rows[i]), params, f"{tag}-{i}"):
            if not seen and out.outputs[0].token_ids:
                seen = True
                firsts.append(time.perf_counter() - start)

    await asyncio.gather(*(one(i) for i in range(len(rows))))
    return time.perf_counter() - start, statistics.median(firsts)


async def server_streams(url: str, rows: list[list[int]], new: int) -> tuple[float, float]:
    """The same of a server, over HTTP."""
    firsts: list[float] = []
    start = time.perf_counter()

    async def one(client: httpx.AsyncClient, row: list[int]) -> None:
        asked = {
            "model": "patient",
            "prompt": row,
            "max_tokens": new,
            "temperature": 0,
            "stream": True,
        }
        seen = False
        async with client.stream("POST", f"{url}/v1/completions", json=asked) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if not seen and line.startswith("data: {"):
                    seen = True
                    firsts.append(time.perf_counter() - start)

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client, row) for row in rows))
    return time.perf_counter() - start, statistics.median(firsts)


Measure = Callable[[list[list[int]], int], tuple[float, float]]
"""Seconds in all and to the first token, of rows with so many new tokens."""
Ratios = tuple[list[float], list[float]]
"""Guarded over unguarded: throughput, and time to the first token; one of each for a round."""


def sitting(
    name: str, plain: Measure, guarded: Measure, rounds: int, streams: int, new: int
) -> Ratios:
    """So many rounds, after one that warms both up; in each, either runs before and after the
    other, since machines drift."""
    draw = torch.Generator().manual_seed(0)
    ratios, firsts = [], []
    for i in range(rounds + 1):
        took: dict[Measure, list[tuple[float, float]]] = {plain: [], guarded: []}
        for order in ((plain, guarded), (guarded, plain)):
            rows = [
                torch.randint(16, 200, (24 + j % 17,), generator=draw).tolist()
                for j in range(streams)
            ]
            for measure in order:
                took[measure].append(measure(rows, new))
        spent, first = (
            {m: sum(turn[what] for turn in turns) for m, turns in took.items()} for what in (0, 1)
        )
        if i:
            ratios.append(spent[plain] / spent[guarded])
            firsts.append(first[guarded] / first[plain])
            speed = 2 * streams * new / spent[guarded]
            print(
                f"{name} {i}: {speed:.0f} tokens/s, throughput ratio {ratios[-1]:.3f}", flush=True
            )
    return ratios, firsts


def lines(name: str, plain_first: Ratios, guarded_first: Ratios, streams: int) -> list[str]:
    """Lines of the table, from both sittings."""
    made = []
    for what, one, other, goal in zip(
        ("throughput", "time to first token"),
        plain_first,
        guarded_first,
        ("0.97", "-"),
        strict=True,
    ):
        middle, low, high = median_interval([*one, *other])
        each = f"{statistics.median(one):.3f}, {statistics.median(other):.3f}"
        made.append(
            f"| {name}: {what}, {streams} streams | {middle:.3f} | {low:.3f}-{high:.3f} | {each} | {goal} |"
        )
    return made


def in_vllm(
    folder: Path, rounds: int, streams: int, new: int, eager: bool, guarded_first: bool
) -> Ratios:
    """Two engines side by side."""
    from safeswitch.engines.vllm.engine import VLLMEngine

    options = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "enforce_eager": eager}
    kinds = {"plain": None, "guarded": folder / "switch"}
    with ExitStack() as stack:
        measures: dict[str, Measure] = {}
        for kind in sorted(kinds, reverse=not guarded_first):
            engine = stack.enter_context(VLLMEngine(folder, kinds[kind], **options))
            measures[kind] = lambda rows, new, e=engine: e._wait(
                engine_streams(e, rows, new, str(time.time()))
            )  # type: ignore[misc]
        return sitting("vLLM", measures["plain"], measures["guarded"], rounds, streams, new)


def in_transformers(
    folder: Path, rounds: int, streams: int, new: int, guarded_first: bool
) -> Ratios:
    """Two servers side by side, one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    flags = ("--batch-size", str(streams), "--served-model-name", "patient")
    where: dict[str, str] = {"model": str(folder), "switch": str(folder / "switch")}
    kinds = {"plain": ("--policy", "off"), "guarded": ()}
    with ExitStack() as stack:
        measures: dict[str, Measure] = {}
        for kind in sorted(kinds, reverse=not guarded_first):
            (folder / kind).mkdir(exist_ok=True)
            server = stack.enter_context(
                serving(folder / kind, "transformers", *kinds[kind], *flags, **where)
            )  # type: ignore[arg-type]
            measures[kind] = lambda rows, new, u=server.url: asyncio.run(
                server_streams(u, rows, new)
            )  # type: ignore[misc]
        return sitting(
            "transformers server", measures["plain"], measures["guarded"], rounds, streams, new
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter replies")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--only", default="vllm,transformers")
    parser.add_argument("--enforce-eager", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    rounds, new = (3, 16) if args.quick else (8, 32)
    lm = model_100m()
    table = [
        "| | guarded / unguarded | 95 % interval | started first: unguarded, guarded | goal |\n|---|---|---|---|---|"
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        safe_switch(lm).save_pretrained(folder / "switch")
        if "vllm" in args.only.split(","):
            found = [
                in_vllm(folder, rounds, args.streams, new, args.enforce_eager, first)
                for first in (False, True)
            ]
            table += lines("vLLM", found[0], found[1], args.streams)
        if "transformers" in args.only.split(","):
            found = [
                in_transformers(folder, rounds, args.streams, new, first) for first in (False, True)
            ]
            table += lines("transformers server", found[0], found[1], args.streams)
    print("\n".join(table))


if __name__ == "__main__":
    main()
