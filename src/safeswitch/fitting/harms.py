"""Fitting the reader of kinds of harm, beside stage 1 and on the states that it reads.

One ridge regression for all kinds: each row's kind against all others, safe requests among these.
A second one reads the words of the same requests: a small model's states tell kinds apart less well
than both do together. For each kind, a logistic curve of the two (Platt 1999, with two scores) then
gives a probability. The curves are fitted on requests that neither regression has seen: those of
validation and calibration, of which nothing is chosen here. Knows observed requests. Knows nothing
of engines, thresholds or files.

Letters: n requests, C kinds, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.harms import HARMS, OTHER
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import PROMPT_END, Example, ReadPoint
from safeswitch.data.harm_names import harm_of
from safeswitch.fitting.observe import ReadPrompts
from safeswitch.fitting.plan import FitPlan, read_blocks
from safeswitch.probers.added import (
    AddedProber,
    MeansProber,
    OutputsProber,
    StepsProber,
    Terms,
)
from safeswitch.probers.calibrate import platt_targets
from safeswitch.probers.harms import LONGEST, HarmReader, word_logits
from safeswitch.probers.logistic import Array, fit_logistic
from safeswitch.probers.ngrams import hashed_ngrams

FEWEST = 8
"""Fit rows, and rows to calibrate on, without which a kind is not told apart."""
RIDGE = 0.01
"""Penalty on the weighted mean squared error, as stage 1's reader of steps has it on its loss."""
WORD_RIDGE = 1e-5
"""Penalty of the regression on words, chosen on the starter set's calibration part, the curves fitted
on its validation part (SmolLM2-135M: of 419 flagged rows 236, 244, 248 right at 3e-4, 3e-5, 1e-5)."""
BUCKETS = 2**15
"""Hash buckets of the word n-grams, that is weights a kind."""
SAFE_WEIGHT = 0.5
"""What all safe fit rows weigh together, in kinds of harm. Little: the reader is asked once the gate
has fired, and a larger weight tells kinds apart less well (nano, half of validation: .5 gives 82 %,
4 gives 79 %, 20 gives 78 %)."""
_MILD = "careful"


class _Layers(AddedProber):
    """The states of single layers at the prompt's end, for switches that read no steps."""

    kind = "layers"

    @property
    def groups(self) -> tuple[Terms, ...]:
        return tuple({ReadPoint(layer, PROMPT_END): 1.0} for layer in self.blocks)


class HarmFit(NamedTuple):
    """A fitted reader (None where the data tell no kinds), and the record of it (plain JSON)."""

    reader: HarmReader | None
    notes: JsonObject


class _Labelled(NamedTuple):
    """Requests with what they ask for: a name of ``HARMS``, or empty for safe ones."""

    activations: Activations
    kinds: list[str]
    mild: list[bool]


def fit_harms(
    plan: FitPlan, layers: Sequence[int], train: ReadPrompts, held: Sequence[ReadPrompts]
) -> HarmFit:
    """Fit the reader of kinds.

    Args:
        plan: What is read; its settings say which readers stage 1 has.
        layers: Layers that the gate's stages read, where stage 1 reads no steps.
        train: Rows to fit on.
        held: Parts to calibrate on.
    """
    told = {kind for e in train.examples if e.unsafe and (kind := harm_of(e))}
    if not told:
        return HarmFit(None, {"left out": "no unsafe request is of a known category"})
    rows = _labelled([train])
    ready = _labelled(held)
    names, few = _enough(rows.kinds, ready.kinds)
    if not names:
        return HarmFit(None, {"left out": _too_few(rows.kinds, ready.kinds)})
    rows = rows._replace(kinds=_folded(rows.kinds, names))
    ready = ready._replace(kinds=_folded(ready.kinds, names))
    prober = _states(plan, layers)
    features, scalings = prober.features(rows.activations)
    targets, weights = _targets(rows, names), _weights(rows.kinds)
    slopes = _ridge(features, targets, weights, RIDGE)
    folded = [prober.folded(torch.from_numpy(slope), scalings) for slope in slopes]
    weight = torch.stack([one for one, _ in folded])
    bias = torch.cat([one for _, one in folded])
    states = HarmReader(names, prober.points, weight, bias)
    words = _words(rows, targets, weights)
    reader = _calibrated(states, words, ready.activations, _targets(ready, names))
    notes: JsonObject = {
        "fewest": FEWEST,
        "kinds": _counts(names, rows.kinds, ready.kinds, reader.logits(ready.activations)),
        "in other": few,
    }
    return HarmFit(reader, notes)


def _labelled(parts: Sequence[ReadPrompts]) -> _Labelled:
    """All requests of all parts, each with its kind of harm: empty for a safe request, ``other`` for
    an unsafe one whose category is in no table."""
    activations = Activations.concatenate([part.activations for part in parts])
    examples = [example for part in parts for example in part.examples]
    kinds = [_kind(example) for example in examples]
    mild = [example.meta.get("severity") == _MILD for example in examples]
    return _Labelled(activations, kinds, mild)


def _kind(example: Example) -> str:
    return (harm_of(example) or OTHER) if example.unsafe else ""


def _enough(fit: Sequence[str], held: Sequence[str]) -> tuple[list[str], JsonObject]:
    """Kinds with enough rows, in the order of ``HARMS``; and the rows of the others, by kind."""
    counts, later = Counter(fit), Counter(held)
    known = [name for name in HARMS if counts[name]]
    names = [n for n in known if n != OTHER and min(counts[n], later[n]) >= FEWEST]
    few = {n: [counts[n], later[n]] for n in known if n not in names and n != OTHER}
    rest = sum(counts[n] for n in known if n not in names)
    rest_later = sum(later[n] for n in HARMS if n not in names)
    if names and min(rest, rest_later) >= FEWEST:
        names.append(OTHER)
    return names, few


def _too_few(fit: Sequence[str], held: Sequence[str]) -> str:
    counts, later = Counter(fit), Counter(held)
    told = ", ".join(f"{n} {counts[n]} and {later[n]}" for n in HARMS if counts[n])
    return f"no kind has {FEWEST} rows to fit on and {FEWEST} to calibrate on; there are {told}"


def _folded(kinds: Sequence[str], names: Sequence[str]) -> list[str]:
    return [kind if kind in names or not kind else OTHER for kind in kinds]


def _states(plan: FitPlan, layers: Sequence[int]) -> AddedProber:
    """What the reader sees: the steps, outputs or means that stage 1 reads, else single layers."""
    for kind in (MeansProber, StepsProber, OutputsProber):
        if kind.kind in plan.settings.readers:
            return kind(blocks=read_blocks(kind.kind, plan))
    return _Layers(blocks=tuple(layers))


def _targets(rows: _Labelled, names: Sequence[str]) -> Array:
    """``[n, C + 1]`` of 0 and 1: each kind, and whether an unsafe request is mild."""
    columns: list[list[float]] = []
    for name in names:
        columns.append([float(kind == name) for kind in rows.kinds])
    columns.append([float(mild) for mild in rows.mild])
    return np.array(columns, dtype=np.float64).T


def _weights(kinds: Sequence[str]) -> Array:
    """``[n]`` with sum 1: every kind weighs the same, safe rows ``SAFE_WEIGHT`` times as much."""
    counts = Counter(kinds)
    each = [(SAFE_WEIGHT if not kind else 1.0) / counts[kind] for kind in kinds]
    weights = np.array(each, dtype=np.float64)
    return np.asarray(weights / weights.sum())


def _words(rows: _Labelled, targets: Array, weights: Array) -> Tensor | None:
    """``[C + 1, B]``, what each n-gram says for each kind; None where the requests' texts are not
    known."""
    if len(rows.activations.texts) != len(rows.kinds):
        return None
    features = hashed_ngrams(rows.activations, LONGEST, BUCKETS, "harm reader")
    # without its intercept, for which the calibration makes up
    return torch.from_numpy(_ridge(features, targets, weights, WORD_RIDGE)[:, :-1].copy()).float()


def _ridge(features: Any, targets: Array, weights: Array, penalty: float) -> Array:
    """``[C + 1, F + 1]``, intercept last, from features ``[n, F]``, an array or sparse."""
    from sklearn.linear_model import Ridge  # heavy, and only fitting needs it

    found = Ridge(alpha=penalty).fit(features, targets, sample_weight=weights)
    return np.column_stack([found.coef_, found.intercept_])


def _calibrated(
    states: HarmReader, words: Tensor | None, held: Activations, targets: Array
) -> HarmReader:
    """A reader of states and, where their weights ``[C + 1, B]`` are given, of words, with each
    kind's logistic curve folded in."""
    said = [states.logits(held)]
    if words is not None:
        said.append(word_logits(words, held).float())
    scores = torch.stack(said, 2)
    curves = [_platt(scores[:, column], targets[:, column]) for column in range(targets.shape[1])]
    slopes = torch.tensor([slope for slope, _ in curves])
    bias = states.bias * slopes[:, 0] + torch.tensor([shift for _, shift in curves])
    return HarmReader(
        states.names,
        states.points,
        states.weight * slopes[:, 0, None, None],
        bias,
        None if words is None else words * slopes[:, -1:],
    )


def _platt(scores: Tensor, truth: Array) -> tuple[list[float], float]:
    """Slopes and shift that turn ``scores`` ``[n, S]`` into log-odds; targets are kept from 0 and 1 by
    the counts of their classes (Platt 1999, section 2.2). Slopes are 0 or more."""
    rows = scores.double().numpy()
    spread = np.where(rows.std(0) > 0, rows.std(0), 1.0)  # the solver wants features of about 1
    *slopes, shift = fit_logistic(
        rows / spread, platt_targets(truth), np.ones(len(truth)), l2=1e-6, nonnegative=True
    )
    return (np.array(slopes) / spread).tolist(), float(shift)


def _counts(
    names: Sequence[str], fit: Sequence[str], held: Sequence[str], raw: Tensor
) -> JsonObject:
    """By kind: rows fitted and calibrated on, and the AUROC on the latter against all others; the
    curves have seen these rows, of which two weights a kind are little."""
    from sklearn.metrics import roc_auc_score

    counts, later = Counter(fit), Counter(held)
    found: JsonObject = {}
    for column, name in enumerate(names):
        truth = np.array([kind == name for kind in held])
        area = float(roc_auc_score(truth, raw[:, column].numpy()))
        found[name] = {"fit": counts[name], "calibration": later[name], "auroc": area}
    return found
