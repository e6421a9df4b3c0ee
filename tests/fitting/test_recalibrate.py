"""A threshold from verdicts: where it lands, what is said of it, and what it refuses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError
from safeswitch.data.reviews import ReviewVerdict
from safeswitch.data.traffic import Traffic, traffic
from safeswitch.fitting.recalibrate import RecalibrationSettings, _held, recalibrate
from safeswitch.probers.drift import Histogram
from safeswitch.probers.linear import LinearProber
from safeswitch.statistics.intervals import poisson_total
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.card import model_card
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.session import Session, at_prompt
from safeswitch.switch.switch import Switch
from tests.data.made_records import SWITCH, record, sha
from tests.probers.made_states import LAST, make_acts
from tests.switch.test_gate import Says

BAR = 0.5


def switch(**record: Any) -> Switch:
    prober = LinearProber(LAST).fit(*make_acts())
    return Switch(Gate(stage1=Stage(prober, BAR)), NoAction(), record=record)


def seen(flagged: Mapping[str, float], passed: int = 990, low: float = 0.1) -> Traffic:
    """Flagged texts with their scores, and requests that passed with ``low``."""
    rows = [record(text, {"stage1": score}, True) for text, score in flagged.items()]
    rows += [record(f"passed {i}", {"stage1": low}, False) for i in range(passed)]
    for row in rows:
        row["thresholds"] = '{"stage1": 0.5}'
    return traffic(rows, SWITCH, {"stage1": BAR})


FLAGGED = {f"t{i}": 0.55 + i / 25 for i in range(10)}
"""Scores from .55 to .91."""


def said(false: int, of: int = 10) -> dict[str, ReviewVerdict]:
    """The lowest ``false`` texts are false alarms, the rest of the first ``of`` right."""
    return {sha(f"t{i}"): "false_alarm" if i < false else "right" for i in range(of)}


def test_the_threshold_lands_on_the_false_alarm_that_the_budget_leaves_no_room_for() -> None:
    # 1,000 requests at a budget of .3 %: 3.003 - 1 leaves room for two of the six false alarms,
    # which lie at .55, .59, ... .75, so that the fourth of them is the highest to be let pass.
    new, found = recalibrate(switch(), seen(FLAGGED), said(6), RecalibrationSettings(budget=0.003))
    assert found.after == pytest.approx(0.55 + 3 / 25)
    assert new.gate.thresholds() == {"stage1": found.after}
    assert not found.held
    assert found.right is not None
    assert (found.right.rate, found.right.n) == (1.0, 4)
    assert (found.alarms_before.value, found.alarms_after.value) == (60.0, 20.0)
    assert found.alarms_after.low == pytest.approx(10 * poisson_total([1, 1]).low)


def test_a_request_in_front_of_the_new_threshold_is_decided_differently() -> None:
    old = switch()
    new, found = recalibrate(old, seen(FLAGGED), said(6), RecalibrationSettings(budget=0.003))
    between = (found.before + found.after) / 2
    for gate, fires in ((old.gate, True), (new.gate, False)):
        assert gate.stage1 is not None
        stage = replace(gate.stage1, prober=Says(between, points=(LAST,)))
        begun = Session.begin(replace(gate, stage1=stage), NoAction())
        row = Activations({LAST: torch.zeros(1, 4)})
        (session,) = at_prompt([begun], row, time.perf_counter())
        assert session.decision.fired is fires
    assert new.fingerprint != old.fingerprint


def test_the_bound_holds_where_thresholds_lie_close_to_one() -> None:
    # log-odds of .9995 are 7.6, of .9999999 16.1: 3 of them end at .999975
    assert _held(0.9995, 0.9995, 0.9999999, 3.0) == pytest.approx(1 / (1 + math.exp(-10.6005)))


def test_flagged_requests_without_a_verdict_count_by_what_was_reviewed_below_them() -> None:
    # Reviewed: four false alarms, then one right; what lies above counts as the isotonic fit does
    # there, 0, and in the interval's high end as a false alarm.
    _, found = recalibrate(
        switch(), seen(FLAGGED), said(4, of=5), RecalibrationSettings(budget=0.003)
    )
    assert found.verdicts == {"right": 1, "false_alarm": 4, "unsure": 0, "open": 5}
    assert found.after == pytest.approx(0.55 + 1 / 25)
    assert found.alarms_after.value == 20.0
    assert found.alarms_after.high == pytest.approx(10 * poisson_total([1] * 7).high)
    assert found.alarms_after.low == pytest.approx(10 * poisson_total([1, 1]).low)


def test_where_only_false_alarms_were_reviewed_all_others_count_as_such() -> None:
    _, found = recalibrate(
        switch(), seen(FLAGGED), said(3, of=3), RecalibrationSettings(budget=0.003)
    )
    assert found.alarms_before.value == 100.0
    assert found.after == pytest.approx(0.55 + 7 / 25)


def test_a_text_that_was_sent_often_weighs_as_often_and_widens_the_interval() -> None:
    rows = [record("often", {"stage1": 0.6}, True) for _ in range(9)]
    rows += [record("once", {"stage1": 0.7}, True)]
    rows += [record(f"p{i}", {"stage1": 0.1}, False) for i in range(990)]
    for row in rows:
        row["thresholds"] = '{"stage1": 0.5}'
    found = recalibrate(
        switch(),
        traffic(rows, SWITCH, {"stage1": BAR}),
        {sha("often"): "false_alarm", sha("once"): "right"},
        RecalibrationSettings(budget=0.002),
    )[1]
    assert found.after == pytest.approx(0.6)
    assert found.alarms_before.value == 90.0
    assert found.alarms_before.high > 10 * poisson_total([1] * 9).high


def test_what_passed_counts_as_benign_only_when_told_so() -> None:
    flagged = {"t0": 0.6, "t9": 0.9}
    verdicts: dict[str, ReviewVerdict] = {sha("t0"): "right", sha("t9"): "right"}
    with pytest.raises(FitError, match="no flagged request has the verdict 'false_alarm'"):
        recalibrate(switch(), seen(flagged), verdicts)
    told = RecalibrationSettings(budget=0.01, passed_is_benign=True)
    _, found = recalibrate(switch(), seen(flagged, low=0.3), verdicts, told)
    assert found.after == pytest.approx(0.3)


@pytest.mark.parametrize(("max_shift", "lands"), [(0.5, 0.6225), (1.0, 0.7311), (3.0, 0.87)])
def test_verdicts_move_the_threshold_no_further_than_allowed(
    max_shift: float, lands: float
) -> None:
    # all but the highest text are called false alarms; sigmoid(.5) = .6225, sigmoid(1) = .7311
    settings = RecalibrationSettings(budget=0.001, max_shift=max_shift)
    new, found = recalibrate(switch(), seen(FLAGGED, passed=999), said(9), settings)
    assert found.after == pytest.approx(lands, abs=1e-4)
    assert found.held == (max_shift < 3)
    if found.held:
        assert "moves by at most" in model_card(new)


def test_a_second_recalibration_does_not_move_it_beyond_that_either() -> None:
    settings = RecalibrationSettings(budget=0.001, max_shift=0.5)
    first, found = recalibrate(switch(), seen(FLAGGED, passed=999), said(9), settings)
    bars = first.gate.thresholds()
    rows = [record(t, {"stage1": s}, True) for t, s in FLAGGED.items() if s > found.after]
    rows += [record(f"p{i}", {"stage1": 0.1}, False) for i in range(999)]
    for row in rows:
        row["thresholds"] = f'{{"stage1": {found.after!r}}}'
    with pytest.raises(FitError, match=r"has moved by max_shift 0\.5 already"):
        recalibrate(first, traffic(rows, SWITCH, bars), said(9), settings)


def test_a_threshold_that_would_catch_nothing_is_refused() -> None:
    verdicts: dict[str, ReviewVerdict] = {**said(10), sha("t2"): "right"}
    with pytest.raises(FitError, match="none of the 1 requests reviewed as rightly flagged"):
        recalibrate(
            switch(), seen(FLAGGED, passed=999), verdicts, RecalibrationSettings(budget=0.001)
        )
    unsafe = Histogram.of([0.6, 0.65, 0.7], bins=50).to_dict()
    known = switch(calibration={"unsafe_stage1": unsafe})
    with pytest.raises(FitError, match="would catch nothing"):
        recalibrate(known, seen(FLAGGED, passed=999), said(9), RecalibrationSettings(budget=0.001))


def test_what_is_lost_is_told_from_the_unsafe_requests_of_the_fit() -> None:
    unsafe = Histogram.of([0.6, 0.65, 0.7, 0.9], bins=50).to_dict()
    known = switch(calibration={"unsafe_stage1": unsafe})
    new, found = recalibrate(known, seen(FLAGGED), said(6), RecalibrationSettings(budget=0.003))
    assert found.caught is not None
    low, high = found.caught["after"]
    assert low <= 2 / 4 <= high
    assert found.caught["before"] == (0.75, 1.0)
    assert "caught of the fit's unsafe validation requests" in model_card(new)


def test_a_budget_that_is_kept_changes_nothing_and_says_so() -> None:
    with pytest.raises(FitError, match="already keeps false alarms within the budget"):
        recalibrate(switch(), seen(FLAGGED), said(6), RecalibrationSettings(budget=0.1))


def test_too_few_requests_for_a_budget_are_refused_with_the_number() -> None:
    with pytest.raises(FitError, match=r"at least 9999 recorded ones; got 1000"):
        recalibrate(switch(), seen(FLAGGED), said(6), RecalibrationSettings(budget=0.0001))


@pytest.mark.parametrize(
    "wrong",
    [
        {"stage": "watch"},
        {"budget": 0.0},
        {"budget": float("nan")},
        {"max_shift": float("inf")},
        {"per_day": 0},
    ],
)
def test_settings_outside_their_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="RecalibrationSettings"):
        RecalibrationSettings(**wrong)


def test_a_stage_that_the_gate_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(SettingError, match="one of 'stage1'; got 'product'"):
        recalibrate(switch(), seen(FLAGGED), said(6), RecalibrationSettings(stage="product"))


def test_whatever_the_verdicts_the_threshold_stays_a_number_strictly_inside_its_range() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds: tuple[ReviewVerdict, ...] = ("right", "false_alarm", "unsure")
    changed = 0
    for _ in range(40):
        scores = 0.5 + torch.rand(8, generator=generator) / 2
        flagged = {f"t{i}": float(score) for i, score in enumerate(scores)}
        picked = torch.randint(3, (8,), generator=generator).tolist()
        verdicts = {sha(f"t{i}"): kinds[pick] for i, pick in enumerate(picked)}
        try:
            new, _ = recalibrate(
                switch(), seen(flagged, 400), verdicts, RecalibrationSettings(budget=0.005)
            )
        except FitError:
            continue
        changed += 1
        assert BAR < new.gate.thresholds()["stage1"] < 1.0
    assert changed > 10
