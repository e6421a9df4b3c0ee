"""Flagged traffic sorted for review, and the verdicts on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.data.made_records import BARS, SWITCH, record, sha

from safeswitch.core.errors import DataError
from safeswitch.data.reviews import (
    Review,
    add_reviews,
    by_reviewer,
    import_reviews,
    read_reviews,
    reviews_hash,
    settled,
)
from safeswitch.data.traffic import traffic


def test_what_was_flagged_comes_nearest_to_the_threshold_first() -> None:
    seen = traffic(
        [
            record("far", {"stage1": 0.9, "stage2": 0.8}, True),
            record("near", {"stage1": 0.55, "stage2": 0.8}, True),
            record("near by stage 2", {"stage1": 0.9, "stage2": 0.11}, True),
            record("passed", {"stage1": 0.2}, False, at=7200.0),
        ],
        SWITCH,
        BARS,
    )
    assert [one.text for one in seen.flagged] == ["near by stage 2", "near", "far"]
    assert [round(one.margin, 3) for one in seen.flagged] == [0.01, 0.05, 0.4]
    assert (seen.requests, len(seen.passed), seen.days) == (4, 1, 1 / 24)


def test_a_text_that_came_often_is_one_row_that_counts_all_of_them() -> None:
    often = [record("again", {"stage1": 0.6 + i / 100, "stage2": 0.5}, True) for i in range(3)]
    seen = traffic([*often, record("once", {"stage1": 0.7, "stage2": 0.5}, True)], SWITCH, BARS)
    row = next(one for one in seen.flagged if one.text == "again")
    assert (row.times, row.at("stage1")) == (3, 0.62)


def test_only_decisions_of_this_switch_under_its_thresholds_count() -> None:
    scores = {"stage1": 0.9, "stage2": 0.8}
    seen = traffic(
        [
            record("own", scores, True),
            record("other", scores, True, bundle_id="f" * 16),
            record("moved", scores, True, thresholds=json.dumps({**BARS, "stage1": 0.7})),
            record("failed", scores, True, error="ValueError: x"),
            record("off", scores, False, policy="off"),
        ],
        SWITCH,
        BARS,
    )
    assert [one.text for one in seen.flagged] == ["own"]
    assert sorted(seen.left.values()) == [1, 1, 1, 1]


def test_no_record_that_counts_says_why() -> None:
    with pytest.raises(DataError, match="decided by another switch: 1"):
        traffic([record("x", {"stage1": 0.1}, False, bundle_id="f" * 16)], SWITCH, BARS)


def test_a_prompts_threshold_never_lets_pass_what_the_watch_flagged() -> None:
    bars = {**BARS, "watch": 0.6}
    scores = {"stage1": 0.2, "watch": 0.7}
    one = traffic(
        [record("late", scores, True, thresholds=json.dumps(bars))], SWITCH, bars
    ).flagged[0]
    assert one.at("stage1") == math.inf
    assert round(one.margin, 3) == 0.1


def test_under_the_product_rule_the_product_counts() -> None:
    bars = {"product": 0.3}
    told = json.dumps(bars)
    rows = [
        record("fired", {"stage1": 0.8, "stage2": 0.5}, True, thresholds=told),
        record("passed", {"stage1": 0.2}, False, thresholds=told),
    ]
    seen = traffic(rows, SWITCH, bars)
    assert seen.flagged[0].at("product") == pytest.approx(0.4)
    assert seen.passed[0]["product"] == 0.2


def verdict(text: str, said: Any, by: str = "ann", at: float = 1.0) -> Review:
    return Review(sha(text), said, by, at, SWITCH)


def test_verdicts_come_back_from_their_file_and_a_torn_line_does_not(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    given = [verdict("a", "right"), verdict("b", "unsure")]
    add_reviews(path, given)
    with path.open("a") as stream:
        stream.write('{"text_sha256": "')
    assert read_reviews(path) == given
    more = [verdict("c", "right")]
    add_reviews(path, more)
    assert read_reviews(path) == [*given, *more]


def test_the_last_word_of_each_reviewer_counts_and_a_contradiction_settles_nothing() -> None:
    said = [
        verdict("mind changed", "right", at=1.0),
        verdict("mind changed", "false_alarm", at=2.0),
        verdict("disputed", "false_alarm", "ann"),
        verdict("disputed", "right", "bob"),
        Review(sha("other switch"), "right", "ann", 1.0, "f" * 16),
    ]
    assert settled(said, SWITCH) == {sha("mind changed"): "false_alarm", sha("disputed"): "unsure"}
    assert by_reviewer(said)["bob"] == {"right": 1}
    assert reviews_hash(said) == reviews_hash(said[::-1]) != reviews_hash(said[1:])


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"verdict": "right"}, "'text_sha256' is missing"),
        ({"text_sha256": "x", "verdict": "right"}, "64 lower-case hex digits"),
        ({"text_sha256": sha("a"), "verdict": "good"}, "one of 'right', 'false_alarm', 'unsure'"),
        ({"text_sha256": sha("a"), "verdict": "right", "note": 1}, "unknown field 'note'"),
        ({"text_sha256": sha("z"), "verdict": "right"}, "was flagged by switch"),
        ({"text_sha256": sha("a"), "verdict": "right", "switch": "f" * 16}, "what switch"),
        ({"text_sha256": sha("a"), "verdict": "right", "by": "x\ny"}, "a name of one line"),
        ({"text_sha256": sha("a"), "verdict": "right", "at": math.nan}, "line 1"),
        ([], "must be an object"),
    ],
)
def test_a_verdict_from_elsewhere_that_cannot_be_used_is_named(
    tmp_path: Path, row: Any, told: str
) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"given\.jsonl, line 1") as error:
        import_reviews(path, {"by": "ann", "at": 1.0, "switch": SWITCH}, [sha("a")])
    assert told in str(error.value)


def test_verdicts_from_elsewhere_take_who_and_when_from_the_command(tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps({"text_sha256": sha("a"), "verdict": "right"}) + "\n\n")
    found = import_reviews(path, {"by": "ann", "at": 1.0, "switch": SWITCH}, [sha("a")])
    assert found == [verdict("a", "right")]
