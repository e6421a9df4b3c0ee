"""Rates with 95 % intervals and paired tests, with or without groups of values that belong
together. Knows nothing of what was counted.

Variants of one request tend to succeed and fail together, so that they tell less than as many
requests of their own would. Where groups are given (one a value, equal for those that belong
together), groups are what is drawn anew and what is exchanged.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np
from scipy.stats import chi2, norm

from safeswitch.core.errors import DataError

_AT_ONCE = 1_000_000  # numbers drawn at once
Groups = Sequence[Hashable] | None


@dataclass(frozen=True)
class Rate:
    """A proportion of n trials with its Wilson 95 % interval."""

    rate: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def wilson(hits: float, n: int) -> Rate:
    """Wilson score interval of ``hits`` in ``n`` trials (Wilson 1927); ``hits`` may be a mean over
    repeated runs.

    Examples:
        >>> found = wilson(8, 10)
        >>> round(found.low, 3), found.rate, round(found.high, 3)
        (0.49, 0.8, 0.943)
        >>> wilson(0, 10).low
        0.0

    Raises:
        DataError: no trials, or more hits than trials.
    """
    if n < 1 or not 0 <= hits <= n:
        raise DataError(f"wilson: needs 0 <= hits <= n and n >= 1; got hits={hits}, n={n}")
    return Rate(hits / n, *_wilson(hits / n, n), n)


def _wilson(p: float, n: float) -> tuple[float, float]:
    z = float(norm.ppf(0.975))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half) if p > 0 else 0.0, min(1.0, centre + half) if p < 1 else 1.0


def clustered(hits: Sequence[float], groups: Groups) -> Rate:
    """A proportion with Wilson's interval at the effective number of trials (Dean and Pagano 2015,
    doi 10.1093/jssam/smv024).

    That is the number of trials over the design effect, the variance of the proportion when groups
    are drawn anew (linearised) over that of as many independent trials, taken as 1 at least; where
    all outcomes are the same, the number of groups. The percentile interval of a bootstrap would
    have no width there and too little near it, which is where rates of a good defence lie. With
    groups of one it is Wilson's. A hit may be a mean over repeated runs.

    Raises:
        DataError: no outcomes, or another number of groups.
    """
    sums, sizes = _by_group([float(hit) for hit in hits], groups, "clustered")
    n, count = len(hits), len(sums)
    if count == n:
        return wilson(sum(hits), n)
    p = float(sums.sum()) / n
    variance = count / max(1, count - 1) * float(((sums - p * sizes) ** 2).sum()) / n**2
    effective = min(n, n * p * (1 - p) / ((n - 1) * variance)) if variance > 0 else count
    return Rate(p, *_wilson(p, effective), n)


def _by_group(values: Sequence[float], groups: Groups, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each group; every value is one of its own where there are no groups."""
    if not len(values) or (groups is not None and len(groups) != len(values)):
        count = "" if groups is None else f" and {len(groups)} groups"
        raise DataError(
            f"{what}: needs values, and a group for each; got {len(values)} values{count}"
        )
    if groups is None:
        return np.asarray(values, dtype=np.float64), np.ones(len(values))
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    own = [index[group] for group in groups]
    return np.bincount(own, weights=values), np.bincount(own).astype(np.float64)


@dataclass(frozen=True)
class Paired:
    """Two methods judged on the same requests.

    Args:
        only_first: Requests on which only the first method scored.
        only_second: Requests on which only the second did.
        p_value: Two-sided exact probability; 1 when they never differ.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool], groups: Groups = None) -> Paired:
    """McNemar's exact test on paired outcomes; with groups, the exact test that exchanges the
    methods group by group.

    If the methods were alike, each group's difference of hits could as well have the other sign.
    The probability is that of a total as far from zero, over all signs. With groups of one request
    that is McNemar's.

    Examples:
        >>> mcnemar([True, True, True, True], [True, False, False, False])
        Paired(only_first=3, only_second=0, p_value=0.25)

    Raises:
        DataError: sequences of different length.
    """
    if len(first) != len(second):
        raise DataError(
            f"mcnemar: {len(first)} outcomes against {len(second)}; both need the same requests"
        )
    differences = [int(x) - int(y) for x, y in zip(first, second, strict=True)]
    sums = (
        _by_group(differences, groups, "mcnemar")[0].astype(int)
        if differences
        else np.zeros(0, dtype=int)
    )
    chances = np.ones(1)  # of each total from -reach to reach
    for size in np.abs(sums[sums != 0]):
        wider = np.zeros(len(chances) + 2 * size)
        wider[: len(chances)] += chances / 2
        wider[2 * size :] += chances / 2
        chances = wider
    reach, total = len(chances) // 2, abs(int(sums.sum()))
    p = float(chances[reach + total :].sum() + chances[: reach - total + 1].sum()) if total else 1.0
    return Paired(differences.count(1), differences.count(-1), min(1.0, p))


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval from n values."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def bootstrap_mean(
    values: Sequence[float], groups: Groups = None, *, n_boot: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``values`` with the percentile interval of a seeded bootstrap (Efron and Tibshirani
    1993, chapter 13), in which groups are drawn as a whole.

    Raises:
        DataError: no values, or another number of groups.
    """
    sums, sizes = _by_group(values, groups, "bootstrap_mean")
    rng, count = np.random.default_rng(seed), len(sums)
    step = max(1, _AT_ONCE // count)
    parts = [min(step, n_boot - done) for done in range(0, n_boot, step)]
    drawn = (rng.integers(0, count, (part, count)) for part in parts)
    means = np.concatenate([sums[i].sum(1) / sizes[i].sum(1) for i in drawn])
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high), len(values))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    groups: Groups = None,
    *,
    n_boot: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of ``first - second`` over the same requests, which are drawn anew as pairs, those of a
    group together.

    Raises:
        DataError: sequences of different length, or empty.
    """
    if len(first) != len(second):
        raise DataError(
            f"paired_difference: {len(first)} values against {len(second)}; both need the same "
            "requests"
        )
    differences = [float(a) - float(b) for a, b in zip(first, second, strict=True)]
    return bootstrap_mean(differences, groups, n_boot=n_boot, seed=seed)


def weighted_mean(parts: Sequence[tuple[float, Interval]]) -> Interval:
    """``sum(weight * value)`` of independent figures; distances to the limits add in squares, each
    side on its own (Zou and Donner 2008, doi 10.1002/sim.3095), so that a figure of 0 % keeps the
    width of its own interval.

    Args:
        parts: Weight and figure; the weights are used as given.

    Raises:
        DataError: no figures.
    """
    if not parts:
        raise DataError("weighted_mean: needs at least one figure")
    value = sum(weight * part.value for weight, part in parts)
    down = sqrt(sum((weight * (part.value - part.low)) ** 2 for weight, part in parts))
    up = sqrt(sum((weight * (part.high - part.value)) ** 2 for weight, part in parts))
    return Interval(value, value - down, value + up, sum(part.n for _, part in parts))


def poisson_total(sizes: Sequence[float]) -> Interval:
    """A total of counted events with its exact Poisson interval (Garwood 1936).

    Events that come together (one text that was sent several times) tell less than as many of
    their own; the interval of the number of groups is stretched to their total (Dobson et al. 1991,
    doi 10.1002/sim.4780100317). Nothing counted still leaves up to 3.7.

    Args:
        sizes: Events of each group.

    Examples:
        >>> found = poisson_total([1, 1, 1])
        >>> round(found.low, 2), found.value, round(found.high, 2)
        (0.62, 3.0, 8.77)
    """
    groups, total = len(sizes), float(sum(sizes))
    low = float(chi2.ppf(0.025, 2 * groups)) / 2 if groups else 0.0
    high = float(chi2.ppf(0.975, 2 * groups + 2)) / 2
    spread = sqrt(sum(size * size for size in sizes) / groups) if groups else 1.0
    return Interval(
        total, max(0.0, total + spread * (low - groups)), total + spread * (high - groups), groups
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p-values in the given order, at most 1.

    Examples:
        >>> holm([0.25, 0.125, 0.75])
        [0.5, 0.375, 0.75]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted
