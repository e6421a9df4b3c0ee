"""Recorded requests become safe rows only where nothing spoke against them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Message
from safeswitch.data.from_audit import from_audit


def record(i: int, score: float | None, **more: Any) -> dict[str, Any]:
    """An observed request as the database gives it."""
    scores = {} if score is None else {"stage1": score}
    return {
        "request_id": f"r{i}",
        "choice": 0,
        "policy": "observe",
        "fired": False,
        "error": None,
        "text": f"text {i}",
        "scores": json.dumps(scores),
        "thresholds": json.dumps({"stage1": 0.5, "stage2": 0.3}),
        **more,
    }


def turns(text: str) -> tuple[Message, ...] | None:
    return None if text == "odd" else (Message("user", text),)


def test_the_nearest_to_the_threshold_go_apart_without_a_label() -> None:
    scores = [0.01, 0.44, 0.02, 0.03, 0.49, 0.05, 0.06, 0.07, 0.08, 0.09]
    found = from_audit([record(i, score) for i, score in enumerate(scores)], turns, review=0.2)
    assert [e.id for e in found.review] == ["r4-0", "r1-0"]
    assert [e.id for e in found.safe] == [
        "r0-0",
        "r2-0",
        "r3-0",
        "r5-0",
        "r6-0",
        "r7-0",
        "r8-0",
        "r9-0",
    ]
    assert {e.label for e in found.safe} == {"safe"}
    assert {e.label for e in found.review} == {""}
    assert found.review[0].meta == {"why": "near the threshold", "above": "-0.0100"}


def test_what_fired_or_could_not_be_scored_is_always_for_review() -> None:
    rows = [
        record(0, 0.9, fired=True),
        record(1, 0.1, error="NaN"),
        record(2, None),
        record(3, 0.1),
        record(4, 0.0),
    ]
    found = from_audit(rows, turns, review=0.0)
    assert [(e.id, e.meta["why"]) for e in found.review] == [
        ("r0-0", "fired"),
        ("r1-0", "could not be scored"),
        ("r2-0", "could not be scored"),
    ]
    assert [e.id for e in found.safe] == ["r3-0", "r4-0"]


def test_a_text_that_fired_once_is_not_safe_because_it_came_again() -> None:
    rows = [
        record(0, 0.1, text="same"),
        record(1, 0.9, text="same", fired=True),
        record(2, 0.1, text="same"),
    ]
    found = from_audit([*rows, record(3, 0.1)], turns, review=0.0)
    assert [e.id for e in found.review] == ["r1-0"]
    assert [e.id for e in found.safe] == ["r3-0"]
    assert found.left == {"repeated": 2}


def test_records_of_which_no_row_can_be_made_are_counted_by_reason() -> None:
    rows = [
        record(0, 0.1),
        record(1, 0.1, policy="enforce"),
        record(2, 0.1, text=None),
        record(3, 0.1, text="odd"),
    ]
    found = from_audit(rows, turns, review=0.0)
    assert found.left == {
        "not observed, but enforced or off": 1,
        "without text": 1,
        "turns cannot be told": 1,
    }
    with pytest.raises(
        DataError,
        match=r"no recorded request can be used \(without text: 1\); serve with --policy obs",
    ):
        from_audit([record(2, 0.1, text=None)], turns)


def test_under_the_product_rule_the_product_is_compared() -> None:
    bars = json.dumps({"product": 0.25})
    rows = [
        record(0, None, scores=json.dumps({"stage1": 0.4, "stage2": 0.5}), thresholds=bars),
        record(1, None, scores=json.dumps({"stage1": 0.24}), thresholds=bars),
    ]
    found = from_audit(rows, turns, review=0.5)
    assert [(e.id, e.meta["above"]) for e in found.review] == [("r1-0", "-0.0100")]


def test_wrong_values_are_named() -> None:
    with pytest.raises(SettingError, match=r"review .*1\.5"):
        from_audit([], turns, review=1.5)
    with pytest.raises(DataError, match="record 'r0': field 'scores' is not numbers by stage"):
        from_audit([record(0, 0.1, scores="[1]")], turns)
