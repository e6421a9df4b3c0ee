"""Have the scores moved since calibration? Knows nothing of where scores come from. Shapes: n
scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping, JsonObject

WINDOW = 2000
"""Newest scores that the index is of."""
FEWEST = 500
"""Scores before the index is held against its bound: chance alone gives 9 / n in ten bins."""


def exceeds(index: float, scores: int, bound: float) -> bool:
    """Whether the index of so many scores lies above its bound; of too few it says nothing."""
    return scores >= FEWEST and index > bound


@dataclass(frozen=True)
class Histogram:
    """Counts of scores between edges; the outermost bins are open.

    Args:
        edges: Inner edges, rising.
        counts: One more than edges.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if (
            len(self.counts) != len(self.edges) + 1
            or list(self.edges) != sorted(set(self.edges))
            or min(self.counts) < 0
        ):
            raise DataError("Histogram: needs rising edges and one count more than edges")

    @classmethod
    def of(cls, scores: Sequence[float], bins: int = 10) -> Histogram:
        """Bins with an equal fraction of ``scores``; fewer where scores are tied."""
        values = np.asarray(scores, dtype=np.float64)
        if not values.size or np.isnan(values).any():
            raise DataError("Histogram: needs scores, none of them NaN")
        inner = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
        return cls(tuple(map(float, inner)), _counts(inner, values))

    @classmethod
    def parse(cls, found: JsonMapping) -> Histogram:
        """What :meth:`to_dict` gave."""
        return cls(tuple(found["edges"]), tuple(found["counts"]))

    def to_dict(self) -> JsonObject:
        return {"edges": list(self.edges), "counts": list(self.counts)}

    def above(self, value: float) -> tuple[float, float]:
        """Lowest and highest fraction of the counted scores that can lie above ``value``.

        Examples:
            >>> Histogram((0.25, 0.75), (1, 2, 1)).above(0.5)
            (0.25, 0.75)
        """
        place = int(np.searchsorted(self.edges, value, side="left"))
        higher, total = sum(self.counts[place + 1 :]), sum(self.counts)
        # a score on an edge counts below it, so at the edge itself nothing of its bin is above
        on_edge = place < len(self.edges) and self.edges[place] == value
        own = 0 if on_edge else self.counts[place]
        return higher / total, (higher + own) / total

    def psi(self, scores: Sequence[float]) -> float:
        """Population stability index of ``scores`` against this histogram: ``sum (p - q) ln(p /
        q)`` over the bins.

        Half a count is added to each bin on both sides, so an empty one costs much and not
        everything. By custom below 0.1 is no shift and above 0.25 a large one (Siddiqi 2006,
        *Credit Risk Scorecards*).
        """
        here = np.asarray(self.counts, dtype=np.float64) + 0.5
        there = (
            np.asarray(
                _counts(np.asarray(self.edges), np.asarray(scores, dtype=np.float64)),
                dtype=np.float64,
            )
            + 0.5
        )
        q, p = here / here.sum(), there / there.sum()
        return float(((p - q) * np.log(p / q)).sum())


def _counts(edges: np.ndarray, values: np.ndarray) -> tuple[int, ...]:
    """A score on an edge counts below it."""
    bins = np.searchsorted(edges, values, side="left")
    return tuple(int(c) for c in np.bincount(bins, minlength=len(edges) + 1))
