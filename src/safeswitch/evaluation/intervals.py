"""Rates with 95 % intervals and paired tests. Knows nothing of what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np
from scipy.stats import binomtest, norm

from safeswitch.core.errors import DataError

_AT_ONCE = 1_000_000  # numbers drawn at once


@dataclass(frozen=True)
class Rate:
    """A share of n trials with its Wilson 95 % interval."""

    rate: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def wilson(hits: float, n: int) -> Rate:
    """Wilson score interval of ``hits`` in ``n`` trials (Wilson 1927); ``hits`` may be a mean over repeated runs.

    Raises:
        DataError: no trials, or more hits than trials.
    """
    if n < 1 or not 0 <= hits <= n:
        raise DataError(f"wilson: needs 0 <= hits <= n and n >= 1; got hits={hits}, n={n}")
    p, z = hits / n, float(norm.ppf(0.975))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Rate(p, max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < n else 1.0, n)


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test on two methods judged on the same requests.

    Args:
        only_first: Requests on which only the first method scored.
        only_second: Requests on which only the second did.
        p_value: Two-sided exact binomial probability; 1 when they never differ.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Exact McNemar test on paired outcomes.

    Raises:
        DataError: sequences of different length.
    """
    if len(first) != len(second):
        raise DataError(f"mcnemar: {len(first)} outcomes against {len(second)}; both need the same requests")
    a = sum(x and not y for x, y in zip(first, second, strict=True))
    b = sum(y and not x for x, y in zip(first, second, strict=True))
    return Paired(a, b, float(binomtest(a, a + b).pvalue) if a + b else 1.0)


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval from n values."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: Sequence[float], *, n_boot: int = 2000, seed: int = 0) -> Interval:
    """Mean of ``values`` with the percentile interval of a seeded bootstrap (Efron and Tibshirani 1993, chapter 13).

    Raises:
        DataError: no values.
    """
    if not values:
        raise DataError("bootstrap_mean: there are no values")
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // len(data))
    parts = [min(step, n_boot - done) for done in range(0, n_boot, step)]
    means = np.concatenate([data[rng.integers(0, len(data), (part, len(data)))].mean(1) for part in parts])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_difference(first: Sequence[float], second: Sequence[float], *, n_boot: int = 2000, seed: int = 0) -> Interval:
    """Mean of ``first - second`` over the same requests, which are drawn anew as pairs.

    Raises:
        DataError: sequences of different length, or empty.
    """
    if len(first) != len(second):
        raise DataError(f"paired_difference: {len(first)} values against {len(second)}; both need the same requests")
    return bootstrap_mean([float(a) - float(b) for a, b in zip(first, second, strict=True)], n_boot=n_boot, seed=seed)


def weighted_rate(parts: Sequence[tuple[float, Sequence[bool]]], *, n_boot: int = 2000, seed: int = 0) -> Interval:
    """``sum(weight * rate)`` of independent sets, each drawn anew on its own.

    Args:
        parts: Weight and outcomes of each set; the weights are used as given.

    Raises:
        DataError: no sets, or an empty one.
    """
    if not parts or not all(len(outcomes) for _, outcomes in parts):
        raise DataError("weighted_rate: needs at least one set, and none empty")
    rng = np.random.default_rng(seed)
    drawn, value = np.zeros(n_boot), 0.0
    for weight, outcomes in parts:
        n, rate = len(outcomes), sum(outcomes) / len(outcomes)
        drawn += weight * rng.binomial(n, rate, n_boot) / n
        value += weight * rate
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), sum(len(outcomes) for _, outcomes in parts))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p-values in the given order, at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
