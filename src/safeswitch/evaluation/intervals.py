"""Rates with 95 % intervals and paired tests. Knows nothing of what was counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

from scipy.stats import binomtest, norm

from safeswitch.core.errors import DataError


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
