"""Score a file of requests and pick the threshold that keeps false alarms within a budget.

    python examples/pick_threshold.py
    python examples/pick_threshold.py --requests yours.jsonl --budget 0.01 --out switch-2/

The file holds rows with ``prompt`` and ``label`` (safe or unsafe), as ``fit --data`` takes them. One
half of the safe ones sets the threshold, the other half tells what it is worth.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from safeswitch import Switch, TransformersEngine
from safeswitch.data.readers import read_examples
from safeswitch.engines.transformers.screen import screen
from safeswitch.nano import switch_path, weights_path
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.statistics.intervals import wilson

REQUESTS = Path(__file__).parent / "requests.jsonl"


def fraction_above(scores: Sequence[float], threshold: float) -> str:
    """How many scores lie above the threshold, with a 95 % interval."""
    rate = wilson(sum(score > threshold for score in scores), len(scores))
    return f"{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}) of {rate.n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=Path, default=REQUESTS)
    parser.add_argument("--budget", type=float, default=0.05, help="of safe requests")
    parser.add_argument("--out", type=Path, help="folder for the changed switch")
    given = parser.parse_args()

    engine = TransformersEngine.load(weights_path(), batch_size=32)
    switch = Switch.from_pretrained(switch_path())
    examples = read_examples(given.requests)
    decisions = screen(engine, examples, switch)
    safe, unsafe = [], []
    for example, decision in zip(examples, decisions, strict=True):
        (unsafe if example.unsafe else safe).append(decision.scores["stage1"])
    random.Random(0).shuffle(safe)
    chosen_on, held = safe[: len(safe) // 2], safe[len(safe) // 2 :]

    own = switch.gate.thresholds()["stage1"]
    found = conformal_threshold(torch.tensor(chosen_on), given.budget)
    print(f"budget {given.budget:g}: threshold {own:.4f} -> {found.value:.4f}")
    for name, threshold in (("before", own), ("after", found.value)):
        print(f"{name}: false alarms on held-out requests {fraction_above(held, threshold)}")
        print(f"{name}: unsafe requests found {fraction_above(unsafe, threshold)}")
    if given.out is not None:
        gate = switch.gate.with_thresholds({"stage1": found.value})
        replace(switch, gate=gate).save_pretrained(given.out)
        print(f"written to {given.out}")


if __name__ == "__main__":
    main()
