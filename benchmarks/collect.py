"""What recording states costs, in memory and time, against a bare forward pass and against keeping
every layer.

    OMP_NUM_THREADS=1 python benchmarks/collect.py [--quick] [--device cuda]

A random Llama of about 110M parameters reads prompts of 64 to 256 tokens in batches of 2048 tokens:

    bare      the backbone alone; nothing is kept
    record    `safeswitch.activations.record.record`: prompt_end at 4 layers
    naive     `output_hidden_states=True`, all layers and tokens moved to the host and kept, as the paper's code does

Peak memory is what a process holds at most above what it held before, after one warm-up batch; each
way in a process of its own, with an allocator that gives every tensor of 256 KiB or more back at
once (glibc), read from the kernel on Linux (VmHWM; elsewhere the peak since start). Times are
medians of alternating pairs; on the CPU they are processor seconds, which other load does not
stretch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safeswitch.activations.record import record
from safeswitch.core.types import ReadPoint
from safeswitch.models.batching import length_batches
from safeswitch.models.language_model import LanguageModel

VOCAB, LAYERS, BATCH_TOKENS = 32_000, 12, 2048
POINTS = [ReadPoint(layer) for layer in (3, 6, 9, 12)]


def build(device: str) -> LanguageModel:
    """The random model, with a tokenizer that only knows its pad token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=0, chat_template=None)
    return LanguageModel(
        LlamaForCausalLM(config).to(device), tokenizer, model_id="random-llama-110m"
    )


def prompts(count: int) -> list[list[int]]:
    """Token rows, longest first, so that every way makes the same batches."""
    draw = random.Random(0)
    rows = [[draw.randrange(VOCAB) for _ in range(draw.randint(64, 256))] for _ in range(count)]
    return sorted(rows, key=len, reverse=True)


def batches(lm: LanguageModel, rows: list[list[int]]) -> list[list[list[int]]]:
    """Rows in the batches that `record` makes, at most ``BATCH_TOKENS`` tokens each, padding
    included."""
    lengths = [len(row) for row in rows]
    found = length_batches(
        lengths, lm.traits, pass_tokens=lm.pass_tokens, batch_tokens=BATCH_TOKENS
    )
    return [[rows[i] for i in batch] for batch in found]


@torch.no_grad()
def run(way: str, lm: LanguageModel, rows: list[list[int]]) -> Any:
    """Read ``rows`` in the given way; what is returned is what that way keeps."""
    if way == "record":
        return record(lm, rows, [len(row) for row in rows], POINTS, batch_tokens=BATCH_TOKENS)
    kept = []
    for batch in batches(lm, rows):
        ids, mask = lm.pad(batch)
        if way == "bare":
            lm.run_backbone(ids, mask)
            continue
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        output = lm.parts.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        kept.append([state.cpu() for state in output.hidden_states])
    return kept


def peak_bytes(way: str, count: int, device: str) -> int:
    """Peak memory of one run above what was held before it, on the device and the host together, in
    bytes."""
    lm, rows = build(device), prompts(count)
    assert lm.traits.pads_left
    run(way, lm, rows[-4:])
    on_device = device.startswith("cuda")
    if on_device:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_device else 0
    host = _status("VmRSS")
    _reset_peak()
    run(way, lm, rows)
    extra = torch.cuda.max_memory_allocated() - before if on_device else 0
    return extra + max(0, _status("VmHWM") - host)


def _status(name: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _clock(device: str) -> float:
    if not device.startswith("cuda"):
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def time_ratio(way: str, count: int, pairs: int, device: str) -> tuple[float, float]:
    """Median seconds of the bare forward and the median of (way / bare) over alternating pairs."""
    lm, rows = build(device), prompts(count)
    assert lm.traits.pads_left
    ratios, bare = [], []
    for pair in range(pairs + 1):
        seconds = {}
        for name in ("bare", way) if pair % 2 else (way, "bare"):
            start = _clock(device)
            run(name, lm, rows)
            seconds[name] = _clock(device) - start
        if pair:  # the first pair warms up
            bare.append(seconds["bare"])
            ratios.append(seconds[way] / seconds["bare"])
    return statistics.median(bare), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="16 prompts and 3 pairs instead of 64 and 9"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", choices=("bare", "record", "naive"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    count, timed, pairs = (16, 4, 3) if args.quick else (64, 8, 9)
    if args.peak:
        print(json.dumps(peak_bytes(args.peak, count, args.device)))
        return
    command = [
        sys.executable,
        __file__,
        "--device",
        args.device,
        *(["--quick"] if args.quick else []),
        "--peak",
    ]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_TRIM_THRESHOLD_": "0"}
    peaks = {}
    for way in ("bare", "record", "naive"):
        found = subprocess.run(
            [*command, way], check=True, stdout=subprocess.PIPE, text=True, env=env
        )
        peaks[way] = int(found.stdout.splitlines()[-1])
    seconds, ratio = time_ratio("record", timed, pairs, args.device)
    _, naive = time_ratio("naive", timed, pairs, args.device)
    times = {"bare": 1.0, "record": ratio, "naive": naive}
    print(
        f"{count} prompts (memory), {timed} prompts x {pairs} pairs (time), {args.device}, bare {seconds:.2f} s"
    )
    print(f"{'way':8} {'peak MiB':>9} {'above bare':>11} {'time / bare':>12}")
    for way, peak in peaks.items():
        print(
            f"{way:8} {peak / 2**20:9.1f} {(peak - peaks['bare']) / 2**20:11.1f} {times[way]:12.3f}"
        )
    print(f"peak memory, naive / record: {peaks['naive'] / peaks['record']:.1f}x")
    print("goals: at least 5x less extra memory, time at most 1.05 of the bare pass")


if __name__ == "__main__":
    main()
