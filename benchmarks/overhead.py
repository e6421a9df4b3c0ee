"""What the gate costs: guarded generation against plain ``generate`` at the same batch size on the
same model.

    python benchmarks/overhead.py [--quick] [--model FOLDER] [--stage1 default|steps|outputs]

A random Llama of about 100 million parameters on the CPU; the gate is the default one (three
layers, a token window and n-grams fused at stage 1, three layers at stage 2 after k = 3 pilot
tokens). *Safe* traffic: stage 1 never fires. *Flagged*: every request fires at stage 2, so it costs
its k pilot steps. Plain and guarded runs alternate; the ratio is the median over pairs, with its 95
% interval from order statistics. Goals: safe at most 1.02; flagged at most (new tokens + k) / new
tokens, times the same 1.02. Machines are noisier than the gate is dear, so the last column times
the gate itself: seconds spent in its hook on the LM head, as a share of the guarded run.

``--model`` takes a model of yours in place of the random one. With ``--stage1 steps`` or
``outputs``, stage 1 reads what ten blocks of the upper two thirds add to the residual stream, and
the gate has no other stage: what it costs then is what reading there costs, and there is safe
traffic alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.stats import binom
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tiny import tiny_tokenizer

from safeswitch.activations.states import Activations
from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.rows import Rows
from safeswitch.fitting.plan import FitPlan, read_blocks
from safeswitch.fitting.settings import FitSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import Prober
from safeswitch.probers.build import make_prober
from safeswitch.switch.actuators.base import LowRankHead
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch

PILOT = 3
LAYERS = (6, 9, 12)
STAGE1 = ("default", "steps", "outputs")


def model_100m() -> LanguageModel:
    """12 blocks, width 768, vocabulary 16,384: 110 million random parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LanguageModel(LlamaForCausalLM(config), tiny_tokenizer(), model_id="random-100m")


def fitted(spec: dict[str, object], width: int) -> Prober:
    """The prober of ``spec`` fitted on noise: its cost does not depend on what it learnt."""
    prober = make_prober(spec)
    draw = torch.Generator().manual_seed(1)
    n, labels = 64, torch.arange(64) % 2 == 0
    states, masks = {}, {}
    for point in prober.points:
        window = point.position.index if point.position.kind == "window" else 0
        states[point] = torch.randn((n, window, width) if window else (n, width), generator=draw)
        if window:
            masks[point] = torch.ones(n, window, dtype=torch.bool)
    texts = tuple(f"request {i} about {'this' if i % 2 else 'that'}" for i in range(n))
    return prober.fit(Activations(states, masks, texts), labels)


def gates(width: int) -> tuple[Gate, Gate]:
    """The same probers, once so that nothing fires at stage 1 and once so that everything fires at
    stage 2."""
    first = fitted({"kind": "fusion", "readers": [
        {"kind": "layer_average", "points": [str(ReadPoint(layer, PROMPT_END)) for layer in LAYERS]},
        {"kind": "window", "point": str(ReadPoint(9, Position("window", 64)))},
        {"kind": "ngram"},
    ]}, width)  # fmt: skip
    second = fitted({
        "kind": "layer_average", "points": [str(ReadPoint(layer, Position("pilot", PILOT))) for layer in LAYERS]
    }, width)  # fmt: skip
    safe = Gate(stage1=Stage(first, 1.0), stage2=Stage(second, 1.0))
    flagged = Gate(stage1=Stage(first, 0.0), stage2=Stage(second, 0.0))
    return safe, flagged


def adding_gate(lm: LanguageModel, reader: str) -> Gate:
    """A stage 1 of ``steps`` or ``outputs`` that never fires."""
    blocks = read_blocks(reader, FitPlan(lm.num_layers, FitSettings(readers=(reader,))))
    return Gate(stage1=Stage(fitted({"kind": reader, "blocks": blocks}, lm.hidden_size), 1.0))


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval: the order statistics that enclose it whatever the
    distribution."""
    ordered = sorted(values)
    low = int(binom.ppf(0.025, len(ordered), 0.5))
    return statistics.median(ordered), ordered[low], ordered[len(ordered) - 1 - low]


class GateClock:
    """Adds up the seconds that the gate spends in its hook."""

    def __init__(self) -> None:
        self.total, self._hook = 0.0, Rows._on_head

    def __enter__(self) -> GateClock:
        def timed(rows: Rows, *args: object) -> object:
            start = time.perf_counter()
            try:
                return self._hook(rows, *args)  # type: ignore[arg-type]
            finally:
                self.total += time.perf_counter() - start

        Rows._on_head = timed  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        Rows._on_head = self._hook  # type: ignore[method-assign]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter replies")
    parser.add_argument("--model", help="model folder in place of the random model")
    parser.add_argument("--stage1", choices=STAGE1, default="default", help="what the gate reads")
    args = parser.parse_args()
    rounds, new, batch = (7, 16, 4) if args.quick else (25, 24, 8)
    lm = LanguageModel.load(args.model, dtype=torch.float32) if args.model else model_100m()
    engine = TransformersEngine(lm, batch_size=batch)
    prompts = [f"tell me something about topic number {i} " * (2 + i % 3) for i in range(batch)]
    head = LowRankHead(0.01 * torch.randn(1, lm.hidden_size), 0.01 * torch.randn(lm.vocab_size, 1))
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}

    def plain() -> object:
        ids, mask = lm.pad(lm.encode(prompts))
        return lm.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **options)

    def guarded(gate: Gate) -> object:
        return engine.generate(prompts, Switch(gate, head), **options)

    bounds = {"safe": 1.02, "flagged": 1.02 * (new + PILOT) / new}
    print(
        f"batch {batch}, {new} new tokens, k = {PILOT}, {torch.get_num_threads()} threads, {rounds} pairs"
    )
    print(
        "| traffic | guarded / plain | 95 % interval | goal | share of the run spent in the gate |\n|---|---|---|---|---|"
    )
    if args.stage1 == "default":
        traffic = dict(zip(("safe", "flagged"), gates(lm.hidden_size), strict=True))
    else:
        traffic = {"safe": adding_gate(lm, args.stage1)}
    for name, gate in traffic.items():
        plain(), guarded(gate)
        ratios = []
        for i in range(rounds):
            if i % 2:
                b, a = seconds(lambda gate=gate: guarded(gate)), seconds(plain)
            else:
                a, b = seconds(plain), seconds(lambda gate=gate: guarded(gate))
            ratios.append(b / a)
        with GateClock() as clock:
            share = 1 / seconds(lambda gate=gate: guarded(gate))
        middle, low, high = median_interval(ratios)
        print(
            f"| {name} | {middle:.3f} | {low:.3f}-{high:.3f} | {bounds[name]:.3f} | {clock.total * share:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
