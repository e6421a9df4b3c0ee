"""Batches: every row once, memory bounded, long rows apart where their padding would cost more than
a batch."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeswitch.models.batching import length_batches
from safeswitch.models.traits import Traits

PLAIN = Traits(True, True, None)


def cut(lengths: list[int], **settings: int) -> list[list[int]]:
    """Lengths by batch."""
    found = length_batches(lengths, PLAIN, **{"pass_tokens": 16, **settings})
    return [[lengths[i] for i in batch] for batch in found]


def test_long_rows_are_kept_apart_from_short_ones() -> None:
    batches = cut([40, 400, 50, 390, *[45] * 28], batch_rows=32, reach=16)
    assert batches == [[400, 390], [50, *[45] * 28, 40]]


def test_rows_stay_together_where_another_batch_costs_more_than_their_padding() -> None:
    lengths = [60, *[50] * 9]
    assert len(cut(lengths, batch_rows=32, reach=16)) == 1
    assert len(cut(lengths, batch_rows=32, reach=0)) == 2
    assert len(cut([400, *[50] * 9], batch_rows=32, reach=256, pass_tokens=512)) == 1
    assert len(cut([400, *[50] * 9], batch_rows=32, reach=16, pass_tokens=16)) == 2


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), reach=st.integers(0, 3))
def test_no_other_cut_costs_less(lengths: list[int], reach: int) -> None:
    falling = sorted(lengths, reverse=True)

    def cost(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(batch) + 7 * (1 + reach) for batch in batches)

    least = math.inf
    for ends in itertools.product((False, True), repeat=len(falling) - 1):
        batches = [[falling[0]]]
        for length, apart in zip(falling[1:], ends, strict=True):
            if apart:
                batches.append([])
            batches[-1].append(length)
        if max(map(len, batches)) <= 4:
            least = min(least, cost(batches))
    assert cost(cut(lengths, batch_rows=4, reach=reach, pass_tokens=7)) == least


def test_a_full_batch_is_no_reason_to_cut_an_equal_one_early() -> None:
    assert [len(b) for b in cut([30] * 70, batch_rows=32, reach=16)] == [32, 32, 6]


def test_the_room_for_replies_counts_as_tokens() -> None:
    assert [len(b) for b in cut([10] * 12, batch_tokens=100, reach=15)] == [4, 4, 4]
    assert [len(b) for b in cut([10] * 12, batch_tokens=100)] == [10, 2]
    assert [len(b) for b in cut([300, 10, 10], batch_tokens=100)] == [1, 2]


@pytest.mark.parametrize(
    "traits", [PLAIN, Traits(False, False, None), Traits(True, True, None, rope_switch=70)]
)
@given(
    lengths=st.lists(st.integers(1, 200), max_size=80),
    rows=st.integers(1, 9),
    tokens=st.integers(1, 900),
    reach=st.integers(0, 40),
    cost=st.integers(0, 600),
)
def test_each_row_once_and_no_batch_beyond_its_bounds(
    traits: Traits, lengths: list[int], rows: int, tokens: int, reach: int, cost: int
) -> None:
    found = length_batches(
        lengths, traits, pass_tokens=cost, batch_rows=rows, batch_tokens=tokens, reach=reach
    )
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        own = [lengths[i] for i in batch]
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * (max(own) + reach) <= tokens
        assert own == sorted(own, reverse=True)
        if not traits.pads_left or (traits.rope_switch and max(own) + reach > traits.rope_switch):
            assert len(set(own)) == 1
