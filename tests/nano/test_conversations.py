"""Conversations on nano: the suites, and what a refused turn does to those that follow."""

from __future__ import annotations

import pytest
from tests.nano.made_talks import NEW, guard, nano, talks

import safeswitch.nano.bench  # noqa: F401  (registers its benchmarks)
from safeswitch.bench.benchmark import BENCHMARKS, load
from safeswitch.data.talks import SHAPES
from safeswitch.nano import judge
from safeswitch.nano.conversations import load_conversations


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("prefix", ["conversation_", "nano_conversation_"])
def test_each_shape_is_a_benchmark_with_as_many_safe_requests_as_unsafe_ones(
    prefix: str, name: str
) -> None:
    rows = load(BENCHMARKS[prefix + name], limit=40).examples
    assert sum(row.unsafe for row in rows) == 20
    assert len({row.id for row in rows}) == 40
    assert {row.meta["shape"] for row in rows} == {name}


def test_nanos_conversations_fit_its_context_and_are_the_same_for_the_same_seed() -> None:
    for name in SHAPES:
        rows = load_conversations(name, 60)
        assert rows == load_conversations(name, 60)
        assert max(len(ids) for ids in nano().lm.encode(rows)) < 400


def test_after_a_refused_turn_the_guard_lets_pass_what_the_model_answers() -> None:
    found = talks()
    found.check(
        nano().generate(found.conversations, switch=guard(), max_new_tokens=NEW, do_sample=False)
    )


def test_a_refused_request_leaves_nothing_behind_for_the_next_conversation() -> None:
    found = talks()
    mixed = [row for pair in zip(found.refused, found.honest, strict=True) for row in pair]
    replies = nano().generate(mixed, switch=guard(), max_new_tokens=NEW, do_sample=False)
    assert all(reply.decision.fired for reply in replies[::2])
    for example, reply in zip(found.honest, replies[1::2], strict=True):
        assert not reply.decision.fired
        assert judge.correct(example, reply.text)
