"""Scores of many resampled test sets at once.

Each resample draws as many positives and as many negatives as there are, with replacement, so a
resample is a row of counts and every statistic a product with counts. Where rows belong together,
as many groups of each class are drawn as there are, each as a whole. Shapes: B resamples, n rows,
n+ positives, n- negatives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Resamples(NamedTuple):
    """Sorted scores of each class, and how often each was drawn, ``[B, n+]`` and ``[B, n-]`` (row
    0: once each)."""

    positives: Floats
    negatives: Floats
    positive_counts: Floats
    negative_counts: Floats

    @classmethod
    def draw(
        cls,
        scores: Floats,
        labels: NDArray[np.bool_],
        n_boot: int,
        seed: int,
        groups: NDArray[np.int64] | None = None,
    ) -> Resamples:
        """The data themselves and ``n_boot`` stratified resamples of them; ``groups`` are numbers,
        one a row."""
        rng = np.random.default_rng(seed)
        own = np.arange(len(scores)) if groups is None else groups
        sides = []
        for side in (labels, ~labels):
            order = np.argsort(scores[side], kind="stable")
            sides.append((scores[side][order], _counts(own[side][order], n_boot, rng)))
        (positives, drawn_positives), (negatives, drawn_negatives) = sides
        return cls(positives, negatives, drawn_positives, drawn_negatives)


def _counts(groups: NDArray[np.int64], n_boot: int, rng: np.random.Generator) -> Floats:
    names, own = np.unique(groups, return_inverse=True)
    n = len(names)
    drawn = rng.integers(0, n, size=(n_boot, n)) + np.arange(n_boot)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=n_boot * n).reshape(n_boot, n)
    return np.vstack([np.ones((1, len(groups))), counts[:, own]])


def _sizes(r: Resamples) -> tuple[Floats, Floats]:
    """How many positives and negatives each resample holds, ``[B]`` each."""
    return r.positive_counts.sum(1), r.negative_counts.sum(1)


def _cumulative(counts: Floats) -> Floats:
    """``[B, n + 1]``: how many of the first i."""
    return np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, 1)], 1)


def auroc(r: Resamples) -> Floats:
    """Fraction of (positive, negative) pairs in the right order, a tie counting half
    (Mann-Whitney), ``[B]``."""
    below = _cumulative(r.negative_counts)
    under = below[:, np.searchsorted(r.negatives, r.positives, "left")]
    upto = below[:, np.searchsorted(r.negatives, r.positives, "right")]
    positives, negatives = _sizes(r)
    return np.asarray((r.positive_counts * (under + upto)).sum(1) / (2.0 * positives * negatives))


def tpr_at_fpr(r: Resamples, fpr: float) -> Floats:
    """Fraction of positives above the lowest threshold that at most ``floor(fpr * n-)`` negatives
    exceed, ``[B]``."""
    positives, negatives = _sizes(r)
    allowed = np.floor(fpr * negatives + 1e-9)
    values, last = np.unique(r.negatives[::-1], return_index=True)
    last = len(r.negatives) - last  # negatives at or below each value
    exceeding = negatives[:, None] - _cumulative(r.negative_counts)[:, last]
    chosen = np.argmax(exceeding <= allowed[:, None], axis=1)
    beyond = np.searchsorted(r.positives, values, "right")[chosen]
    caught = _cumulative(r.positive_counts)[np.arange(len(chosen)), beyond]
    return np.asarray(1.0 - caught / positives)


def f1_and_accuracy(r: Resamples, threshold: float) -> tuple[Floats, Floats]:
    """F1 of the positive class (0 when nothing fires) and accuracy, firing on ``score >
    threshold``, ``[B]`` each."""
    hits = r.positive_counts @ (r.positives > threshold).astype(np.float64)
    false = r.negative_counts @ (r.negatives > threshold).astype(np.float64)
    positives, negatives = _sizes(r)
    return 2 * hits / (hits + false + positives), (hits + negatives - false) / (
        positives + negatives
    )


def calibration_error(r: Resamples, bins: int) -> Floats:
    """Expected calibration error over ``bins`` bins of equal width, ``[B]``."""
    gap: Any = 0.0
    for values, counts, label in (
        (r.positives, r.positive_counts, 1.0),
        (r.negatives, r.negative_counts, 0.0),
    ):
        index = np.clip((values * bins).astype(np.int64), 0, bins - 1)
        excess = np.zeros((len(values), bins))
        excess[np.arange(len(values)), index] = label - values
        gap = gap + counts @ excess
    return np.asarray(np.abs(gap).sum(1) / sum(_sizes(r)))
