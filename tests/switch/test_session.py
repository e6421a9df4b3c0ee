"""What is written down after each reading, worked out by hand; how sessions go on from one
another."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from safeswitch.core.types import Position, ReadPoint
from safeswitch.switch.actuators.base import LowRankHead, NoAction, Steering
from safeswitch.switch.actuators.heads import SoftHead
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.session import Session, at_late, at_pilot, at_prompt, at_watch
from tests.switch.test_gate import NAN, Says, activations

HEAD = LowRankHead(torch.zeros(1, 3), torch.zeros(5, 1))


def stage(*scores: float, read: str = "prompt_end") -> Stage:
    """Fixed scores, read at a position; those above a half pass."""
    prober = Says(*scores, points=(ReadPoint(2, Position.parse(read)),))
    prober.appended = (1, 2)
    return Stage(prober, 0.5)


def prompts(gate: Gate, n: int, action: Any = HEAD, **more: Any) -> list[Session]:
    return at_prompt([Session.begin(gate, action)] * n, activations(n), time.perf_counter(), **more)


def told(session: Session) -> tuple[bool, str, int, str]:
    decision = session.decision
    return decision.fired, decision.stage, decision.token_index, decision.actuator


def test_each_stage_says_when_it_decided_and_what_it_saw() -> None:
    gate = Gate(
        stage1=stage(0.2, 0.8, 0.9), stage2=stage(0.75, 0.25), watch=stage(0.1, 1.0, read="pilot:1")
    )
    first = prompts(gate, 3)
    assert [s.pending for s in first] == [False, True, True]
    assert [told(s) for s in first] == [(False, "stage1", 0, "none")] * 3
    second = at_pilot(first[1:], activations(2), [3, 2], 0.0)
    assert [told(s) for s in second] == [
        (True, "stage2", 3, "low_rank_head"),
        (False, "stage2", 2, "none"),
    ]
    assert second[0].decision.scores == pytest.approx({"stage1": 0.8, "stage2": 0.75})
    third = at_watch([first[0], second[1]], activations(2), [8, 8], 0.0)
    assert [told(s) for s in third] == [
        (False, "watch", 8, "none"),
        (True, "watch", 8, "low_rank_head"),
    ]
    assert third[1].decision.scores == pytest.approx({"stage1": 0.9, "stage2": 0.25, "watch": 1.0})
    assert [told(s) for s in first] == [(False, "stage1", 0, "none")] * 3, (
        "sessions are replaced, never changed"
    )


def test_what_waits_for_stage_two_is_let_go_on_by_the_watch_unless_it_fires() -> None:
    gate = Gate(stage2=stage(0.9), watch=stage(0.1, 0.9, read="pilot:1"))
    waiting = prompts(gate, 2)
    assert [told(s) for s in waiting] == [(False, "none", 0, "none")] * 2
    watched = at_watch(waiting, activations(2), [4, 4], 0.0)
    assert [(s.pending, s.decision.fired) for s in watched] == [(True, False), (False, True)]


def test_a_last_chance_at_the_prompt_fires_on_whatever_is_not_cleared() -> None:
    gate = Gate(stage1=stage(0.2, 0.8, 0.8), stage2=stage(0.0))
    found = prompts(gate, 3, final=[True, True, False])
    assert [told(s)[:2] for s in found] == [(False, "stage1"), (True, "stage1"), (False, "stage1")]
    assert [s.pending for s in found] == [False, False, True]
    (direct,) = prompts(Gate(stage2=stage(0.0)), 1, final=[True])
    assert told(direct) == (True, "stage1", 0, "low_rank_head")
    assert direct.decision.scores == {}
    (always,) = prompts(Gate(always=True), 1, final=[True])
    assert told(always)[:2] == (True, "always")


@pytest.mark.parametrize(("fail", "fires"), [("closed", True), ("open", False)])
def test_what_cannot_be_read_goes_by_the_failure_rule_and_says_so(fail: Any, fires: bool) -> None:
    gate = Gate(stage1=stage(NAN), fail=fail)
    (broken,) = prompts(gate, 1)
    lost = Session.begin(gate, HEAD).lost("gone", 5)
    action = "low_rank_head" if fires else "none"
    assert [told(broken), told(lost)] == [(fires, "error", 0, action), (fires, "error", 5, action)]
    assert (broken.decision.scores, broken.decision.error) == ({}, "the score is not finite")
    assert (lost.decision.error, lost.pending) == ("gone", False)


def test_an_error_stays_on_record_when_a_later_stage_can_speak() -> None:
    gate = Gate(stage1=stage(NAN), watch=stage(0.1, read="pilot:1"), fail="open")
    (watched,) = at_watch(prompts(gate, 1), activations(1), [2], 0.0)
    assert (watched.decision.stage, watched.decision.error) == ("watch", "the score is not finite")


def test_the_late_stage_fires_at_the_first_length_and_keeps_the_highest_score_up_to_there() -> None:
    late = stage(0.3, 0.2, 0.6, 0.1, 0.9, 0.4, read="appended:2")
    clear = prompts(Gate(stage1=stage(0.0, 0.0, 0.0), late=late), 3)
    places = [(0, 2), (0, 4), (0, 6), (2, 2), (2, 4), (2, 5)]
    found = at_late(clear, activations(6), places, 0.0)
    assert [told(s)[:3] for s in found] == [
        (True, "late", 6),
        (False, "stage1", 0),
        (True, "late", 4),
    ]
    assert [s.decision.scores.get("late", 0.0) for s in found] == pytest.approx([0.6, 0.0, 0.9])
    assert found[1] is clear[1]


def test_the_time_of_a_reading_is_shared_evenly_by_its_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 8.0)
    gate = Gate(stage1=stage(0.0, 0.0), late=stage(0.9, 0.9, 0.1, read="appended:2"))
    found = at_prompt([Session.begin(gate, HEAD)] * 2, activations(2), 2.0)
    assert [s.decision.latency_s for s in found] == [3.0, 3.0]
    late = at_late(found, activations(3), [(0, 2), (0, 4), (1, 2)], 6.0)
    assert [s.decision.latency_s for s in late] == [4.0, 4.0]


def test_a_soft_head_is_in_force_in_the_fraction_that_the_deciding_score_calls_for() -> None:
    gate = Gate(stage1=stage(0.75, 0.25))
    found = prompts(gate, 2, SoftHead(HEAD, 0.5, 1.0))
    assert [s.fraction for s in found] == [0.5, 1.0]
    (always,) = prompts(Gate(always=True), 1, SoftHead(HEAD, 0.5, 1.0))
    assert always.fraction == 1.0


def test_a_two_sided_action_relieves_what_stage_one_is_sure_of_and_nothing_else() -> None:
    steering = Steering((1,), torch.zeros(1, 3), relief=-1.0, relief_below=0.4)
    found = prompts(Gate(stage1=stage(0.1, 0.45, 0.9)), 3, steering)
    assert [s.relieved for s in found] == [True, False, False]
    assert [s.decision.actuator for s in found] == ["steering", "none", "steering"]
    one_sided = prompts(Gate(stage1=stage(0.1)), 1, Steering((1,), torch.zeros(1, 3)))
    assert not one_sided[0].relieved


def test_where_the_gate_only_observes_no_action_is_named() -> None:
    (found,) = prompts(Gate(stage1=stage(0.9)), 1, NoAction())
    assert told(found) == (True, "stage1", 0, "none")
