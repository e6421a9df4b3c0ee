"""What the guard costs in serving: throughput and time to the first token, guarded against unguarded, in both engines.

    python benchmarks/serving.py [--quick] [--streams 64] [--only vllm,transformers] [--enforce-eager]

A random Llama of about 100 million parameters on the CPU, safe streamed traffic, pairs in turn, all in one run: a stock vLLM
engine and a guarded one; the server on the transformers engine with ``--policy off`` and guarded, over HTTP. The gate is two
stages over three layers, with n-grams beside stage 1; it never fires. Goal: throughput at least 0.97 of the unguarded. The time
to the first token is, over HTTP, that to the first event: a random model's tokens need not be text.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx
import torch
from benchmarks.overhead import LAYERS, PILOT, fitted, median_interval, model_100m
from benchmarks.running import serving

from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.switch.actuators import LowRankHead
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


async def engine_streams(engine: Any, rows: list[list[int]], new: int, tag: str) -> tuple[float, float]:
    """Seconds for all streams of a vLLM engine, and the median time to the first token."""
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    firsts: list[float] = []
    start = time.perf_counter()

    async def one(i: int) -> None:
        params = SamplingParams(max_tokens=new, ignore_eos=True, temperature=0.0, output_kind=RequestOutputKind.DELTA)
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
        asked = {"model": "patient", "prompt": row, "max_tokens": new, "temperature": 0, "stream": True}
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


def pairs(name: str, plain: Measure, guarded: Measure, rounds: int, streams: int, new: int) -> list[str]:
    """Lines of the table."""
    draw = torch.Generator().manual_seed(0)
    ratios, firsts = [], []
    for i in range(rounds + 1):
        rows = [torch.randint(3, 200, (24 + j % 17,), generator=draw).tolist() for j in range(streams)]
        order = (plain, guarded) if i % 2 else (guarded, plain)
        took = {measure: measure(rows, new) for measure in order}
        if i:  # the first round warms both up
            ratios.append(took[plain][0] / took[guarded][0])
            firsts.append(took[guarded][1] / took[plain][1])
            print(f"{name} {i}: {streams * new / took[guarded][0]:.0f} tokens/s, throughput ratio {ratios[-1]:.3f}", flush=True)
    lines = []
    for what, values, goal in (("throughput", ratios, "0.97"), ("time to first token", firsts, "-")):
        middle, low, high = median_interval(values)
        lines.append(f"| {name}: {what}, {streams} streams | {middle:.3f} | {low:.3f}-{high:.3f} | {goal} |")
    return lines


def in_vllm(folder: Path, rounds: int, streams: int, new: int, eager: bool) -> list[str]:
    """Two engines side by side."""
    from safeswitch.engines.vllm.engine import VLLMEngine

    options = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "enforce_eager": eager}
    with VLLMEngine(folder, None, **options) as plain, VLLMEngine(folder, folder / "switch", **options) as guarded:
        both: list[Measure] = [
            lambda rows, new, e=engine: e._wait(engine_streams(e, rows, new, str(time.time())))  # type: ignore[misc]
            for engine in (plain, guarded)
        ]
        return pairs("vLLM", *both, rounds, streams, new)


def in_transformers(folder: Path, rounds: int, streams: int, new: int) -> list[str]:
    """Two servers side by side, one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    flags = ("--batch-size", str(streams), "--served-model-name", "patient")
    where: dict[str, str] = {"model": str(folder), "switch": str(folder / "switch")}
    (folder / "off").mkdir()
    with (
        serving(folder / "off", "transformers", "--policy", "off", *flags, **where) as plain,  # type: ignore[arg-type]
        serving(folder, "transformers", *flags, **where) as guarded,  # type: ignore[arg-type]
    ):
        both: list[Measure] = [
            lambda rows, new, u=server.url: asyncio.run(server_streams(u, rows, new))  # type: ignore[misc]
            for server in (plain, guarded)
        ]
        return pairs("transformers server", *both, rounds, streams, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter replies")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--only", default="vllm,transformers")
    parser.add_argument("--enforce-eager", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    rounds, new = (5, 16) if args.quick else (15, 32)
    lm = model_100m()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        safe_switch(lm).save_pretrained(folder / "switch")
        if "vllm" in args.only.split(","):
            lines += in_vllm(folder, rounds, args.streams, new, args.enforce_eager)
        if "transformers" in args.only.split(","):
            lines += in_transformers(folder, rounds, args.streams, new)
    print("\n".join(["| | guarded / unguarded | 95 % interval | goal |\n|---|---|---|---|", *lines]))


if __name__ == "__main__":
    main()
