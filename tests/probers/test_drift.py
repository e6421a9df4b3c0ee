"""Drift against hand counts."""

from __future__ import annotations

import math

import pytest

from safeswitch.core.errors import DataError
from safeswitch.probers.drift import Histogram


def test_bins_hold_equal_shares_of_what_they_were_made_of() -> None:
    made = Histogram.of([i / 100 for i in range(100)], bins=4)
    assert made.edges == (0.24, 0.49, 0.74)
    assert made.counts == (25, 25, 25, 25)
    assert Histogram.parse(made.to_dict()) == made


def test_ties_share_a_bin() -> None:
    made = Histogram.of([0.0] * 50 + [1.0] * 50)
    assert made.edges == (0.0, 1.0)
    assert made.counts == (50, 50, 0)


def test_the_index_is_that_of_the_formula_and_nothing_where_nothing_moved() -> None:
    made = Histogram((0.5,), (30, 10))
    assert made.psi([0.1] * 30 + [0.9] * 10) == 0.0
    q, p = (30.5 / 41, 10.5 / 41), (5.5 / 21, 15.5 / 21)
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(q, p, strict=True))
    assert made.psi([0.1] * 5 + [0.9] * 15) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    "wrong", [((0.5,), (1,)), ((0.5, 0.2), (1, 1, 1)), ((0.5, 0.5), (1, 1, 1)), ((0.5,), (1, -1))]
)
def test_what_is_no_histogram_is_refused(wrong: tuple[tuple[float, ...], tuple[int, ...]]) -> None:
    with pytest.raises(DataError):
        Histogram(*wrong)


@pytest.mark.parametrize("scores", [[], [0.1, math.nan]])
def test_scores_that_cannot_be_counted_are_refused(scores: list[float]) -> None:
    with pytest.raises(DataError):
        Histogram.of(scores)
