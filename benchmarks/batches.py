"""What batches cut by tokens save over batches cut by rows alone, and that no reply is another.

    OMP_NUM_THREADS=1 python benchmarks/batches.py [--model FOLDER] [--pairs 3] [--reply-tokens 16]

128 random prompts, one in 32 of 400 tokens and the others of 30 to 60, get greedy replies in
batches of at most 32 rows, long and short ones mixed:

    rows      sorted by length, 32 together: the longest prompt sets the width of its batch
    tokens    as the engine cuts them (`safeswitch.models.batching`)

Times are processor seconds on the CPU, in pairs that alternate; the figure is the median of the
pairs' ratios. Without ``--model`` it is the random model of `benchmarks/collect.py`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import torch

from collect import build
from safeswitch.core.types import Tokens
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.requests import Request
from safeswitch.models.language_model import LanguageModel

PROMPTS, ROWS = 128, 32


class ByRows(TransformersEngine):
    """Cuts batches by rows alone."""

    def _batches(self, requests: Sequence[Request], reach: int) -> list[list[Request]]:
        falling = sorted(requests, key=lambda request: -len(request.ids))
        starts = range(0, len(falling), self.batch_size)
        return [falling[start : start + self.batch_size] for start in starts]


def prompts(vocab_size: int) -> list[Tokens]:
    """Token prompts in mixed order."""
    draw = random.Random(0)
    found = []
    for i in range(PROMPTS):
        length = 400 if i % 32 == 5 else draw.randint(30, 60)
        ids = [draw.randrange(10, vocab_size) for _ in range(length)]
        found.append(Tokens(tuple(ids), ""))
    return found


def seconds(
    engine: TransformersEngine, asked: list[Tokens], new: int
) -> tuple[float, list[tuple[int, ...]]]:
    """Time of one run, and its replies."""
    clock = time.process_time if engine.lm.device.type == "cpu" else time.perf_counter
    start = clock()
    replies = engine.generate(asked, max_new_tokens=new, do_sample=False)
    return clock() - start, [reply.token_ids for reply in replies]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="model folder; it is loaded as float32")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--reply-tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    lm = build(args.device)
    if args.model:
        lm = LanguageModel.load(args.model, dtype=torch.float32, device_map=args.device)
    ways = {"rows": ByRows(lm, batch_size=ROWS), "tokens": TransformersEngine(lm, batch_size=ROWS)}
    asked = prompts(lm.vocab_size)
    seconds(ways["tokens"], asked[:2], 2)
    times: dict[str, list[float]] = {"rows": [], "tokens": []}
    replies = {}
    for pair in range(args.pairs):
        for way in ("rows", "tokens") if pair % 2 else ("tokens", "rows"):
            spent, replies[way] = seconds(ways[way], asked, args.reply_tokens)
            times[way].append(spent)
            print(f"pair {pair + 1}, by {way}: {spent:.1f} s", flush=True)
    ratios = [new / old for new, old in zip(times["tokens"], times["rows"], strict=True)]
    same = sum(one == other for one, other in zip(replies["rows"], replies["tokens"], strict=True))
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    old, new = (statistics.median(times[way]) for way in ("rows", "tokens"))
    print(
        f"{PROMPTS} prompts, {args.reply_tokens} reply tokens: by rows {old:.1f} s, by tokens {new:.1f} s"
    )
    print(
        f"tokens / rows: {statistics.median(ratios):.2f} (pairs {told}); replies that are the same: {same} of {PROMPTS}"
    )


if __name__ == "__main__":
    main()
