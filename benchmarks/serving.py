"""What the guard costs inside vLLM: throughput and time to the first token, guarded against a stock engine.

    python benchmarks/serving.py [--quick] [--streams 64] [--enforce-eager]

A random Llama of about 100 million parameters on the CPU, two engines in this run, safe streamed traffic in turn. The gate is
two stages over three layers, with n-grams beside stage 1; it never fires. Goal: throughput at least 0.97 of the stock engine.
Needs vLLM.
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

import torch
from benchmarks.overhead import LAYERS, PILOT, fitted, median_interval, model_100m

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


async def streams(engine: Any, rows: list[list[int]], new: int, tag: str) -> tuple[float, float]:
    """Seconds for all streams, and the median time to the first token."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter replies")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--enforce-eager", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from safeswitch.engines.vllm.engine import VLLMEngine

    rounds, new = (5, 16) if args.quick else (15, 32)
    lm = model_100m()
    with tempfile.TemporaryDirectory() as folder:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        options = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "enforce_eager": args.enforce_eager}
        switch = safe_switch(lm)
        draw = torch.Generator().manual_seed(0)
        with VLLMEngine(folder, None, **options) as plain, VLLMEngine(folder, switch, **options) as guarded:
            ratios, firsts = [], []
            for i in range(rounds + 1):
                rows = [torch.randint(3, 200, (24 + j % 17,), generator=draw).tolist() for j in range(args.streams)]
                order = (plain, guarded) if i % 2 else (guarded, plain)
                took = {id(e): e._wait(streams(e, rows, new, f"{i}")) for e in order}
                if i:  # the first round warms both up
                    ratios.append(took[id(plain)][0] / took[id(guarded)][0])
                    firsts.append(took[id(guarded)][1] / took[id(plain)][1])
                    rate = args.streams * new / took[id(guarded)][0]
                    print(f"round {i}: guarded {rate:.0f} tokens/s, throughput ratio {ratios[-1]:.3f}", flush=True)
    print("| | guarded / stock | 95 % interval | goal |\n|---|---|---|---|")
    for name, values, goal in (("throughput", ratios, "0.97"), ("time to first token", firsts, "-")):
        middle, low, high = median_interval(values)
        print(f"| {name}, {args.streams} streams | {middle:.3f} | {low:.3f}-{high:.3f} | {goal} |")


if __name__ == "__main__":
    main()
