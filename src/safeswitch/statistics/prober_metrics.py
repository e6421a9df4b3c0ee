"""How good scores are, each figure with a 95 % interval. Knows nothing of probers or states."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject
from safeswitch.statistics import bootstrap

FPR = 0.01
ECE_BINS = 15


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class ProberMetrics:
    """Figures of one prober on one test set.

    Args:
        auroc: Area under the ROC curve.
        f1: F1 of the positive class at ``threshold`` (firing on ``score > threshold``).
        accuracy: Accuracy at ``threshold``.
        tpr_at_1_fpr: Fraction of positives above the lowest threshold that at most ``floor(0.01 *
            negatives)`` exceed.
        ece: Expected calibration error, 15 bins.
        threshold: Threshold of ``f1`` and ``accuracy``.
        positives: Number of positives.
        negatives: Number of negatives.
    """

    auroc: Estimate
    f1: Estimate
    accuracy: Estimate
    tpr_at_1_fpr: Estimate
    ece: Estimate
    threshold: float
    positives: int
    negatives: int

    def to_dict(self) -> JsonObject:
        return asdict(self)


FIGURES = ("auroc", "f1", "accuracy", "tpr_at_1_fpr", "ece")


def measure(
    scores: Tensor,
    labels: Tensor,
    *,
    groups: Sequence[Hashable] | None = None,
    threshold: float = 0.5,
    n_boot: int = 1000,
    seed: int = 0,
) -> ProberMetrics:
    """Metrics of scores ``[n]`` against labels ``[n]``, with percentile intervals from a
    stratified, seeded bootstrap.

    Where ``groups`` say what belongs together (one a score, equal for variants of one request),
    groups are drawn as a whole.

    Raises:
        DataError: other lengths, scores outside [0, 1] or NaN, or labels of one class only.
    """
    s = scores.detach().flatten().double().cpu().numpy()
    y = labels.flatten().bool().cpu().numpy()
    if len(s) != len(y) or y.all() or not y.any():
        raise DataError(
            f"measure: needs one score a label and both classes; got {len(s)} scores, "
            f"{int(y.sum())} positive of {len(y)} labels"
        )
    if not ((s >= 0) & (s <= 1)).all():
        raise DataError(
            f"measure: scores must lie in [0, 1]; {int(np.isnan(s).sum())} are NaN, and others may "
            "be outside"
        )
    line = float(torch.tensor(threshold, dtype=scores.dtype))  # as ``scores > threshold`` rounds it
    drawn = bootstrap.Resamples.draw(s, y, n_boot, seed, _numbered(groups, len(s)))
    f1, accuracy = bootstrap.f1_and_accuracy(drawn, line)
    values = {
        "auroc": bootstrap.auroc(drawn),
        "f1": f1,
        "accuracy": accuracy,
        "tpr_at_1_fpr": bootstrap.tpr_at_fpr(drawn, FPR),
        "ece": bootstrap.calibration_error(drawn, ECE_BINS),
    }
    return _gather(
        {name: _estimate(v) for name, v in values.items()}, threshold, int(y.sum()), int((~y).sum())
    )


def _numbered(groups: Sequence[Hashable] | None, n: int) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    if len(groups) != n:
        raise DataError(f"measure: needs one group a score; got {len(groups)} for {n}")
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.asarray([index[group] for group in groups], dtype=np.int64)


def _gather(
    figures: Mapping[str, Estimate], threshold: float, positives: int, negatives: int
) -> ProberMetrics:
    auroc, f1, accuracy, tpr, ece = (figures[name] for name in FIGURES)
    return ProberMetrics(auroc, f1, accuracy, tpr, ece, threshold, positives, negatives)


def _estimate(values: NDArray[np.float64]) -> Estimate:
    """Point value (row 0) and the 2.5 and 97.5 percentiles of the resamples."""
    if len(values) == 1:
        return Estimate(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def mean_metrics(parts: Sequence[ProberMetrics]) -> ProberMetrics:
    """Plain mean of each figure over ``parts``; counts add up.

    The interval takes the parts as given (not as a sample of possible parts) and their errors as
    independent: half widths add in squares, each side on its own.
    """
    if not parts:
        raise DataError("mean_metrics: needs the metrics of at least one part; got none")
    k, means = len(parts), {}
    for name in FIGURES:
        estimates = [getattr(p, name) for p in parts]
        value = sum(e.value for e in estimates) / k
        down = sqrt(sum((e.value - e.low) ** 2 for e in estimates)) / k
        up = sqrt(sum((e.high - e.value) ** 2 for e in estimates)) / k
        means[name] = Estimate(value, value - down, value + up)
    positives, negatives = sum(p.positives for p in parts), sum(p.negatives for p in parts)
    return _gather(means, parts[0].threshold, positives, negatives)
