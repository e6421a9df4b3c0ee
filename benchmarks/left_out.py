"""Stage 1 as the product fits it, on public data sets of which each is left out of the fit in turn.

    python benchmarks/left_out.py --model FOLDER --data FOLDER --states FOLDER [--seeds 3] [--json FILE]

Fitted on the starter set and on the other sets, divided as ``fit --data`` divides them; rows that
nearly repeat one of the set that is left out are no part of the fit, and sets that share templates
are left out together (``--together``). The threshold is the product's: conformal, on the ordinary
requests of the calibration part. Printed by budget: the mean share caught over the unsafe sets, the
mean and the worst share of false triggers over the safe ones; and what a perfect calibration would
catch. States are read once and kept. No row goes into what is written, only figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.categories import States

from safeswitch.activations.states import Activations
from safeswitch.bench.benchmark import drawn
from safeswitch.core.types import LABELS, Example
from safeswitch.data import starter
from safeswitch.data.leakage import leaks
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import grouped_split
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.observe import ReadPrompts
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.build import make_prober
from safeswitch.probers.calibrate import conformal_threshold

BUDGETS = (0.01, 0.02, 0.03)
TRUE_RATES = (0.01, 0.02, 0.05)
PARTS = ("train", "validation", "calibration")
NEAR = 0.5
"""Overlap of 5-grams above which a row is no part of a fit that leaves the other's set out."""
Scores = Mapping[str, NDArray[np.float64]]


def public_rows(folder: Path, cap: int) -> list[Example]:
    """At most ``cap`` rows of each file and label; the source names both."""
    found: list[Example] = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = read_examples(path)
        for label in LABELS:
            own = [row for row in rows if row.label == label]
            for row in drawn(own, cap, 0):
                name = f"{path.stem} {label}"
                found.append(replace(row, id=f"{name} {row.id}", source=name))
    return found


def families(names: Sequence[str], together: Sequence[str]) -> list[list[str]]:
    """Files in the groups in which they are left out."""
    joined = [group.split(",") for group in together]
    alone = [[name] for name in names if not any(name in group for group in joined)]
    return [*alone, *joined]


class Rows:
    """Requests with their states, looked up by id.

    Args:
        parts: All that were read.
        layers: Of the model.
    """

    def __init__(self, parts: Sequence[ReadPrompts], layers: int) -> None:
        self.layers = layers
        self.examples = [example for part in parts for example in part.examples]
        self.activations = Activations.concatenate([part.activations for part in parts])
        self.place = {example.id: i for i, example in enumerate(self.examples)}

    def of(self, examples: Sequence[Example]) -> ReadPrompts:
        """The states of these requests, with their sources."""
        index = torch.tensor([self.place[example.id] for example in examples])
        own = self.activations.select(index)
        sources = tuple(example.source for example in examples)
        return ReadPrompts(tuple(examples), replace(own, sources=sources))


def left_out(
    rows: Rows,
    authored: Sequence[Example],
    public: Sequence[Example],
    gone: Sequence[str],
    seed: int,
) -> tuple[dict[str, NDArray[np.float64]], dict[float, float]]:
    """Scores of the sets of the files ``gone`` by a stage 1 that never saw them, and its thresholds
    by budget."""
    out = [e for e in public if e.source.split()[0] in gone]
    kept = [e for e in public if e.source.split()[0] not in gone]
    near = {leak.test_id for leak in leaks(out, kept, threshold=NEAR)}
    parts = grouped_split([e for e in kept if e.id not in near], seed=seed)
    both = {
        name: rows.of([*parts[name], *(e for e in authored if e.meta["split"] == name)])
        for name in PARTS
    }
    plan = FitPlan(rows.layers, FitSettings(seed=seed))
    train, held = both["train"], both["validation"]
    prober = make_prober(plan.stage1_spec(())).fit(
        train.activations, train.unsafe, validation=(held.activations, held.unsafe), seed=seed
    )
    calm = both["calibration"].select(both["calibration"].ordinary)
    scores = prober.score(calm.activations)
    bars = {budget: conformal_threshold(scores, budget).value for budget in BUDGETS}
    named = {source: [e for e in out if e.source == source] for source in {e.source for e in out}}
    return {
        source: prober.score(rows.of(own).activations).double().numpy()
        for source, own in named.items()
    }, bars


def at_true_rates(scores: Scores) -> dict[str, float]:
    """Means over sets: AUROC, and the share caught where so many safe requests trigger."""
    weight = np.concatenate([np.full(len(own), 1 / len(own)) for own in scores.values()])
    label = np.concatenate([np.full(len(own), "unsafe" in name) for name, own in scores.items()])
    every = np.concatenate(list(scores.values()))
    found = {"auroc": float(roc_auc_score(label, every, sample_weight=weight))}
    order = np.argsort(-every[~label])
    rate = np.cumsum(weight[~label][order]) / weight[~label].sum()
    for wanted in TRUE_RATES:
        bar = every[~label][order][np.searchsorted(rate, wanted)]
        caught = [float((own > bar).mean()) for name, own in scores.items() if "unsafe" in name]
        found[f"caught at a true {wanted:g}"] = float(np.mean(caught))
    return found


def measure(given: argparse.Namespace, seed: int, rows: Rows, public: list[Example]) -> Any:
    """All figures of one division into parts."""
    authored = starter.fitting_rows()
    scores: dict[str, NDArray[np.float64]] = {}
    rates: dict[float, dict[str, float]] = {budget: {} for budget in BUDGETS}
    files = list(dict.fromkeys(e.source.split()[0] for e in public))
    for gone in families(files, given.together):
        own, bars = left_out(rows, authored, public, gone, seed)
        scores |= own
        for budget, bar in bars.items():
            rates[budget] |= {name: float((found > bar).mean()) for name, found in own.items()}
        print(seed, {name: round(rates[0.02][name], 3) for name in own}, flush=True)
    told: dict[str, Any] = {"seed": seed, "sets": rates[0.02], **at_true_rates(scores)}
    for budget, found in rates.items():
        caught = [rate for name, rate in found.items() if name.endswith("unsafe")]
        false = [rate for name, rate in found.items() if not name.endswith("unsafe")]
        told[f"budget {budget:g}"] = {
            "caught": float(np.mean(caught)),
            "false": float(np.mean(false)),
            "worst": max(false),
        }
    return told


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="what LanguageModel.load takes")
    parser.add_argument("--data", type=Path, required=True, help="folder of *.jsonl files")
    parser.add_argument(
        "--states", type=Path, required=True, help="folder in which states are kept"
    )
    parser.add_argument("--cap", type=int, default=120, help="most rows of a file and label")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--together",
        nargs="*",
        default=["self_reminder_jailbreaks,gptfuzz_templates,trustllm_jailbreak"],
        help="files that are left out together, joined by commas",
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.states.mkdir(parents=True, exist_ok=True)
    engine = TransformersEngine.load(given.model)
    states = States(engine, given.states)
    public = public_rows(given.data, given.cap)
    parts = [states.of(part, starter.load([part])) for part in PARTS]
    rows = Rows([*parts, states.of(f"public-{given.cap}", public)], engine.lm.num_layers)
    public = [e for e in public if e.id in rows.place]
    told = [measure(given, seed, rows, public) for seed in range(given.seeds)]
    for one in told:
        print(json.dumps({name: own for name, own in one.items() if name != "sets"}))
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
