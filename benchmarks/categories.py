"""How well kinds of harm are told apart, on rows that nothing was fitted on, beside word n-grams.

    python benchmarks/categories.py --model nano --data harmbench.jsonl --data multijail.jsonl

Fits stage 1 and the reader of kinds on the starter set's rows, and measures both on its held rows
and on every file given, whose ``category`` names kinds (:mod:`safeswitch.data.harm_names`; a list
of names counts as several kinds). Nano speaks a small language of its own: there it fits on nano's
requests and measures on nano's suites. Files without safe rows borrow the starter set's held ones.
For each kind: AUROC and recall at 1 % false positives, against all rows that are not of the kind.
For all of them: of the unsafe requests that stage 1 flags, the fraction whose likeliest kind is one
of those that they are tagged with; a kind that is read as ``other`` counts as that.
"""

from __future__ import annotations

import argparse
import ast
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from safeswitch.activations.states import Activations
from safeswitch.core.harms import OTHER
from safeswitch.core.types import Example
from safeswitch.data import starter
from safeswitch.data.harm_names import harm_named, harm_of
from safeswitch.data.readers import read_examples
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.harms import fit_harms
from safeswitch.fitting.observe import ReadPrompts
from safeswitch.fitting.plan import FitPlan, read_blocks
from safeswitch.fitting.settings import FitSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import weights_path
from safeswitch.nano.suites import load_fit, load_suite
from safeswitch.probers.added import StepsProber
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.probers.harms import HarmReader
from safeswitch.statistics.intervals import wilson

FPR = 0.01
FEWEST = 8
"""Rows of a kind below which no figure is given for it."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Suite:
    """Rows to measure on, with the kinds that each is tagged with (none for safe ones)."""

    name: str
    observed: ReadPrompts
    tags: tuple[frozenset[str], ...]


def tags_of(example: Example) -> frozenset[str]:
    """The kinds of an unsafe row; empty where none is known."""
    if not example.unsafe:
        return frozenset()
    told = example.category.strip()
    if told.startswith("["):
        return frozenset(filter(None, (harm_named(name) for name in ast.literal_eval(told))))
    return frozenset(filter(None, (harm_of(example),)))


def as_read(tags: frozenset[str], names: Sequence[str]) -> frozenset[str]:
    """Kinds as a reader of ``names`` has them."""
    return frozenset(tag if tag in names else OTHER for tag in tags)


def fitting_in(lm: LanguageModel, examples: Sequence[Example]) -> list[Example]:
    """Those that the model's context holds."""
    limit = lm.context_length
    lengths = [len(one.ids) for one in lm.inputs(list(examples), check=False)]
    return [e for e, n in zip(examples, lengths, strict=True) if limit is None or n < limit - 1]


class States:
    """States at the prompt's end, kept on disk between runs."""

    def __init__(
        self, engine: TransformersEngine, folder: Path | None, most_chars: int | None = None
    ) -> None:
        self.engine, self.folder, self.most_chars = engine, folder, most_chars
        blocks = read_blocks("steps", FitPlan(engine.lm.num_layers, FitSettings()))
        self.points = StepsProber(blocks=blocks).points

    def of(self, name: str, examples: Sequence[Example]) -> ReadPrompts:
        """The rows, with their states."""
        if self.most_chars is not None:
            english = [e for e in examples if e.meta.get("lang", "en") == "en"]
            examples = [e for e in english if len(e.prompt) <= self.most_chars]
        rows = fitting_in(self.engine.lm, examples)
        kept = self._kept(name, len(rows))
        if kept is None:
            _, states = self.engine.collect(rows, self.points, max_new_tokens=0)
            kept = states.states
            if self.folder is not None:
                torch.save(kept, self._path(name, len(rows)))
        texts = tuple(row.prompt for row in rows)
        sources = tuple(row.source for row in rows)
        return ReadPrompts(tuple(rows), Activations(kept, {}, texts, sources))

    def _path(self, name: str, count: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.engine.lm.fingerprint}-{name}-{count}.pt"

    def _kept(self, name: str, count: int) -> Any:
        if self.folder is None or not self._path(name, count).exists():
            return None
        return torch.load(self._path(name, count), weights_only=False)


def joined(parts: Sequence[ReadPrompts]) -> ReadPrompts:
    """The rows of all parts."""
    return ReadPrompts(
        tuple(e for part in parts for e in part.examples),
        Activations.concatenate([part.activations for part in parts]),
    )


class Words:
    """Word and word-pair counts of the prompt, one logistic regression a kind."""

    def __init__(self, train: ReadPrompts, names: Sequence[str]) -> None:
        self.counts = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        rows = self.counts.fit_transform([e.prompt for e in train.examples])
        self.models = []
        for name in names:
            truth = [name in as_read(tags_of(e), names) for e in train.examples]
            model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=300)
            self.models.append(model.fit(rows, truth))

    def scores(self, observed: ReadPrompts) -> Array:
        """``[n, C]``."""
        rows = self.counts.transform([e.prompt for e in observed.examples])
        return np.column_stack([model.predict_proba(rows)[:, 1] for model in self.models])


def recall_at(scores: Array, truth: NDArray[np.bool_]) -> float:
    """Of the true rows, the fraction above what one in a hundred of the others exceed."""
    others = np.sort(scores[~truth])
    bar = others[min(len(others) - 1, int(np.ceil((1 - FPR) * len(others))) - 1)]
    return float((scores[truth] > bar).mean())


def figures(suite: Suite, names: Sequence[str], scores: Array) -> dict[str, dict[str, float]]:
    """AUROC and recall by kind."""
    found = {}
    for column, name in enumerate(names):
        truth = np.array([name in as_read(tags, names) for tags in suite.tags])
        if truth.sum() >= FEWEST:
            area = float(roc_auc_score(truth, scores[:, column]))
            recall = recall_at(scores[:, column], truth)
            found[name] = {"n": int(truth.sum()), "auroc": area, "recall": recall}
    return found


def right(suite: Suite, names: Sequence[str], scores: Array, flagged: Array) -> tuple[int, int]:
    """Of flagged unsafe rows with known kinds: how many have their likeliest kind among them, and
    how many there are."""
    hits = rows = 0
    for row, tags in enumerate(suite.tags):
        if tags and flagged[row]:
            rows += 1
            hits += names[int(scores[row].argmax())] in as_read(tags, names)
    return hits, rows


def suites(states: States, held: ReadPrompts, files: Sequence[str]) -> list[Suite]:
    """The starter set's held rows, and each file's rows of known kinds with safe rows beside."""
    found = [Suite("starter, held", held, tuple(map(tags_of, held.examples)))]
    borrowed = held.select(~held.unsafe)
    for file in files:
        rows = [e for e in read_examples(file) if not e.unsafe or tags_of(e)]
        if not any(e.unsafe for e in rows):
            print(f"{file} is left out: no unsafe row of it names a kind that is known here")
            continue
        own = states.of(Path(file).stem, rows)
        if bool(own.unsafe.all()):
            own = joined([own, borrowed])
        found.append(Suite(Path(file).stem, own, tuple(map(tags_of, own.examples))))
    return found


def nano_parts(states: States) -> tuple[dict[str, ReadPrompts], list[Suite]]:
    """The requests that nano's own switch is fitted on, and suites that it was not."""
    data = load_fit(0)
    parts = {"train": data.train, "validation": data.validation, "calibration": data.calibration}
    found = {name: states.of(f"nano-{name}", rows) for name, rows in parts.items()}
    safe = [*load_suite("lookalike", 300, 0), *load_suite("ordinary", 300, 0)]
    held = []
    for name in ("plain_unsafe", "jailbroken", "plain_unsafe_cat", "plain_unsafe_obj_c"):
        own = states.of(f"nano-{name}", [*load_suite(name, 300, 0), *safe])
        held.append(Suite(name, own, tuple(map(tags_of, own.examples))))
    return found, held


def starter_parts(
    states: States, files: Sequence[str]
) -> tuple[dict[str, ReadPrompts], list[Suite]]:
    """The starter set's parts; its held rows, and the files."""
    parts = {part: states.of(part, starter.load([part])) for part in starter.SPLITS}
    return parts, suites(states, parts["held"], files)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, as plain JSON."""
    model, files = given.model, given.data
    template = given.chat_template.read_text("utf-8") if given.chat_template else None
    own = weights_path() if model == "nano" else model
    engine = TransformersEngine.load(own, chat_template=template)
    states = States(engine, given.states, given.most_chars)
    parts, tested = nano_parts(states) if model == "nano" else starter_parts(states, files)
    train, plan = parts["train"], FitPlan(engine.lm.num_layers, FitSettings())
    began = time.perf_counter()
    later = [parts["validation"], parts["calibration"]]
    fit = fit_harms(plan, (), train, later)
    seconds = time.perf_counter() - began
    assert isinstance(fit.reader, HarmReader)
    blocks = read_blocks("steps", plan)
    stage1 = StepsProber(blocks=blocks).fit(train.activations, train.unsafe)
    calm = parts["calibration"].select(parts["calibration"].ordinary).activations
    bar = conformal_threshold(stage1.score(calm), FPR).value
    words = Words(train, fit.reader.names)
    result: dict[str, Any] = {"model": model, "fit_seconds": seconds, "notes": fit.notes}
    for suite in tested:
        flagged = (stage1.score(suite.observed.activations) > bar).numpy()
        read = fit.reader.probabilities(suite.observed.activations)[:, :-1].double().numpy()
        result[suite.name] = {}
        for title, scores in (("states", read), ("words", words.scores(suite.observed))):
            hits, rows = right(suite, fit.reader.names, scores, flagged)
            result[suite.name][title] = {
                "kinds": figures(suite, fit.reader.names, scores),
                "right": [hits, rows],
            }
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| set | reader | kinds | macro AUROC | macro recall | right kind when flagged |"]
    lines.append("|---|---|---|---|---|---|")
    for name, own in result.items():
        if not isinstance(own, dict) or "states" not in own:
            continue
        for title, found in own.items():
            kinds = found["kinds"].values()
            area = np.mean([kind["auroc"] for kind in kinds])
            recall = np.mean([kind["recall"] for kind in kinds])
            hits, rows = found["right"]
            told = f"{hits}/{rows}"
            if rows:
                share = wilson(hits, rows)
                told += f" = {share.rate:.1%} ({share.low:.1%} to {share.high:.1%})"
            lines.append(
                f"| {name} | {title} | {len(kinds)} | {area:.3f} | {recall:.3f} | {told} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--states", type=Path, help="folder in which states are kept")
    parser.add_argument("--most-chars", type=int, help="English rows of at most so many characters")
    parser.add_argument("--chat-template", type=Path, help="in place of the model's own")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    given = parser.parse_args()
    if given.states is not None:
        given.states.mkdir(parents=True, exist_ok=True)
    result = measure(given)
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    first = next(own for own in result.values() if isinstance(own, dict) and "states" in own)
    for name, kind in first["states"]["kinds"].items():
        plain = first["words"]["kinds"][name]
        told = f"AUROC {kind['auroc']:.3f}, recall {kind['recall']:.2f}"
        print(f"{name} ({kind['n']}): {told}; words {plain['auroc']:.3f}, {plain['recall']:.2f}")


if __name__ == "__main__":
    main()
