"""Requests in longer conversations: where each part of them stands."""

from __future__ import annotations

import pytest

from safeswitch.core.types import Example, Message
from safeswitch.data.talks import SHAPES, Talk, shaped

TALK = Talk(
    exchanges=[("q0", "a0"), ("q1", "a1"), ("q2", "a2")],
    refused=[("bad", "no")],
    sentences=[f"s{i}." for i in range(4)],
    operators=["Be brief.", "Be kind."],
)
ROWS = [Example(f"r{i}", (Message("user", f"one two three {i}"),), "safe") for i in range(4)]


def turns(name: str, row: int) -> list[str]:
    return [message.content for message in shaped(name, ROWS, TALK)[row].messages]


def test_each_shape_puts_its_words_where_they_belong() -> None:
    assert turns("turns", 1) == ["q1", "a1", "q2", "a2", "one two three 1"]
    assert turns("after_refusal", 1) == ["bad", "no", "one two three 1"]
    assert turns("after_refusal", 2) == ["bad", "no", "q2", "a2", "one two three 2"]
    assert turns("split", 0) == [
        "Keep this as A: one two",
        "Sure.",
        "Keep this as B: three 0",
        "Sure.",
        "Put A and B together and answer.",
    ]
    assert turns("operator", 1) == ["Be kind.", "one two three 1"]
    [document] = turns("document", 0)
    assert document.split("\n\n") == [
        "s0. s1. s2. s3. s0.",
        "one two three 0",
        "s1. s2. s3. s0. s1.",
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_keeps_what_the_request_is_and_ends_with_the_user(name: str) -> None:
    for row, found in zip(ROWS, shaped(name, ROWS, TALK), strict=True):
        assert (found.label, found.meta["shape"]) == (row.label, name)
        assert found.id.startswith(row.id)
        assert found.messages[-1].role == "user"
        others = [message.role for message in found.messages if message.role != "system"]
        assert others == ["user", "assistant"] * (len(others) // 2) + ["user"]
