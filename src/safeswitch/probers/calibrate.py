"""From scores to decisions that keep a promise: conformal thresholds, Platt scaling, calibration
error.

Knows nothing of probers or states. Shapes: n scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.probers.logistic import fit_logistic

CLIP = 1e-4
"""Scores are kept this far from 0 and 1 before their log-odds are taken (log-odds within about
+-9.2)."""


@dataclass(frozen=True)
class Threshold:
    """Fire on ``score > value``.

    Args:
        value: The threshold.
        budget: Largest accepted probability of a false trigger.
        n: Benign requests it was calibrated on.
        rank: Its rank among their scores, 1 being the smallest.
        guarantee: What is promised, and under which assumption.
    """

    value: float
    budget: float
    n: int
    rank: int
    guarantee: str

    def fires(self, scores: Tensor) -> Tensor:
        """``scores > value``, bool ``[n]``; NaN does not fire here, the gate decides about it."""
        return scores > self.value

    def to_dict(self) -> JsonObject:
        return asdict(self)


def conformal_threshold(safe_scores: Tensor, budget: float = 0.01) -> Threshold:
    """Split-conformal threshold from ``safe_scores`` ``[n]``: a safe request exchangeable with
    these fires with probability at most ``budget``.

    The threshold is the ``ceil((n + 1)(1 - budget))``-th smallest of the n safe scores: among n +
    1 exchangeable scores, the new one exceeds it with probability at most ``budget``, ties
    included. The probability is over calibration set and request together (Vovk et al. 2005; AERIC
    2605.23974 sets a threshold by the same kind of budget without the finite-sample correction).

    Examples:
        >>> found = conformal_threshold(torch.arange(1, 20) / 32, budget=0.1)
        >>> found.rank, found.value == 18 / 32
        (18, True)

    Raises:
        SettingError: budget outside (0, 1).
        FitError: NaN among the scores, or too few of them for this budget.
    """
    if not 0.0 < budget < 1.0:
        raise SettingError(f"conformal_threshold: budget must lie in (0, 1); got {budget!r}")
    scores = torch.as_tensor(safe_scores).detach().flatten().cpu()
    bad = int(torch.isnan(scores).sum())
    if bad:
        raise FitError(
            f"conformal_threshold: {bad} of {len(scores)} safe scores are NaN; score them all first"
        )
    exact, n = Fraction(repr(float(budget))), len(scores)
    rank = math.ceil((n + 1) * (1 - exact))
    if rank > n:
        raise FitError(
            f"conformal_threshold: budget {budget} needs at least {safe_needed(budget)} safe "
            f"prompts; got {n}"
        )
    value = float(scores.sort().values[rank - 1])
    text = (
        f"a safe request exchangeable with the {n} calibration prompts scores above {value:.6g} "
        f"with probability at most {budget:g} (split conformal, rank {rank} of {n})"
    )
    return Threshold(value, float(budget), n, rank, text)


def safe_needed(budget: float) -> int:
    """Safe requests without which no threshold keeps ``budget`` (split conformal).

    Examples:
        >>> safe_needed(0.01), safe_needed(0.03)
        (99, 33)
    """
    return math.ceil(1 / Fraction(repr(float(budget)))) - 1


@dataclass(frozen=True)
class SourceThreshold:
    """Fire on ``score > value``.

    Args:
        value: The threshold.
        budget: Largest accepted mean, over sources, of a source's false positive rate.
        n: Benign requests it was calibrated on.
        mean: The mean rate at this threshold.
        sources: By source: its safe requests ``n``, and the fraction of them that trigger,
        ``rate``.
        guarantee: What is promised, and under which assumption.
    """

    value: float
    budget: float
    n: int
    mean: float
    sources: dict[str, dict[str, float]]
    guarantee: str


def source_threshold(scores: Mapping[str, Tensor], budget: float) -> SourceThreshold:
    """The smallest threshold above which at most ``budget`` lies in the mean over sources.

    Every source weighs the same, however many requests it has: the promise is for a source of its
    own kind that nobody has seen, not for more requests of the largest one. Unlike
    :func:`conformal_threshold` it has no correction for the number of sources; ``sources`` shows
    how far they lie apart.

    Args:
        scores: By source, its safe scores ``[m]`` by a reader that was not fitted on the source.
        budget: In (0, 1).

    Raises:
        SettingError: budget outside (0, 1).
        FitError: no source, a source without scores, or NaN among them.
    """
    if not 0.0 < budget < 1.0:
        raise SettingError(f"source_threshold: budget must lie in (0, 1); got {budget!r}")
    bad = [name for name, own in scores.items() if not len(own) or bool(torch.isnan(own).any())]
    if bad or not scores:
        why = f"source {bad[0]!r} has none, or NaN" if bad else "there is no source"
        raise FitError(f"source_threshold: needs safe scores of every source; {why}")
    ordered = {name: own.detach().flatten().cpu().sort().values for name, own in scores.items()}
    values = torch.cat(list(ordered.values())).unique()
    rates = torch.stack([_share_above(own, values) for own in ordered.values()])
    place = int((rates.mean(0) > budget + 1e-12).sum())
    at = dict(zip(ordered, rates[:, place].tolist(), strict=True))
    sources = {name: {"n": len(own), "rate": at[name]} for name, own in ordered.items()}
    value, mean = float(values[place]), float(rates[:, place].mean())
    text = (
        f"of a safe source that is to the fit what each of these {len(ordered)} was while it was "
        f"left out, a share of {mean:.4g} in the mean scores above {value:.6g} (budget {budget:g}; "
        "single sources lie above and below)"
    )
    n = sum(map(len, ordered.values()))
    return SourceThreshold(value, float(budget), n, mean, sources, text)


def _share_above(ordered: Tensor, values: Tensor) -> Tensor:
    """Fraction of ``ordered`` (ascending) above each of ``values``, float64."""
    return 1.0 - torch.searchsorted(ordered, values, right=True).double() / len(ordered)


def log_odds(scores: Tensor) -> Tensor:
    """``log(s / (1 - s))`` of scores ``[...]``, float64 of the same shape, with scores first kept
    ``CLIP`` away from 0 and 1; NaN stays NaN."""
    kept = scores.double().clamp(CLIP, 1.0 - CLIP)
    return torch.log(kept) - torch.log1p(-kept)


@dataclass(frozen=True)
class Platt:
    """``sigmoid(slope * log_odds(score) + offset)``; monotone, so it moves no ranking."""

    slope: float
    offset: float

    def apply(self, scores: Tensor) -> Tensor:
        """Calibrated scores, float32 ``[n]``."""
        return torch.sigmoid(self.slope * log_odds(scores) + self.offset).float()


def platt_targets(labels: np.ndarray) -> NDArray[np.float64]:
    """Platt's soft targets ``(n+ + 1) / (n+ + 2)`` and ``1 / (n- + 2)``: finite slopes on separable
    data."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    return np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2)).astype(
        np.float64
    )


def platt(scores: Tensor, labels: Tensor) -> Platt:
    """Fit Platt scaling (Platt 1999) on scores ``[n]`` and labels ``[n]`` that the prober was not
    fitted on.

    Raises:
        FitError: NaN among the scores, other lengths, or one class only.
    """
    flat, truth = scores.detach().flatten().cpu(), labels.flatten().bool().cpu().numpy()
    if len(flat) != len(truth) or torch.isnan(flat).any() or truth.all() or not truth.any():
        raise FitError(
            "platt: needs one score that is not NaN for each label, and labels of both classes"
        )
    theta = fit_logistic(
        log_odds(flat).numpy()[:, None],
        platt_targets(truth),
        np.ones(len(truth)),
        l2=1e-6,
        nonnegative=True,
    )
    return Platt(float(theta[0]), float(theta[1]))
