"""Rows that come and go are judged as the whole-batch engine judges them; no vLLM is needed
here."""

from __future__ import annotations

import pytest
import torch

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Position, ReadPoint
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.vllm.guard import Guard, Row, Tenant
from safeswitch.engines.vllm.settings import Task, stop_token
from safeswitch.switch.actuators.base import LowRankHead
from safeswitch.switch.gate import Gate, Stage
from tests.engines.slow import Projection

D, TOP = 4, 3
END, PILOT = ReadPoint(TOP, Position("prompt_end")), ReadPoint(2, Position("pilot", 2))
HEAD = LowRankHead(torch.zeros(1, D), torch.zeros(5, 1))


class Axis(Projection):
    """Scores ``sigmoid(10 * state[axis])``."""

    def __init__(self, point: ReadPoint, axis: int) -> None:
        super().__init__(point, D)
        self.direction = 10.0 * torch.eye(D)[axis]


def gate(**changes: object) -> Gate:
    return Gate(stage1=Stage(Axis(END, 0), 0.5), stage2=Stage(Axis(PILOT, 1), 0.5), **changes)  # type: ignore[arg-type]


def guard(made: Gate) -> Guard:
    return Guard({"default": Tenant("default", made, HEAD)}, TOP)


def task(mode: str = "pilot", key: str = "r", fed: int = 0) -> Task:
    return Task(key, "default", mode, fed)


def step(g: Guard, row: Row, fed: int, state: list[float]) -> tuple[list[int], list[int]]:
    """One sampling step of one row, whose states are the same at every layer."""
    return g.step([(0, row, fed)], lambda layer: torch.tensor([state]))


def test_a_row_that_waits_for_stage_two_is_taken_back_at_once_and_read_anew_while_it_writes_its_pilot_tokens() -> (
    None
):
    g = guard(gate())
    row = g.add(task("enforce"))
    assert step(g, row, 0, [1, 0, 0, 0]) == ([], [0])
    assert step(g, row, 1, [0, 1, 0, 0]) == ([], [0]), (
        "the engine may be a step ahead of its front end"
    )
    again = g.add(task("pilot"))
    assert [step(g, again, fed, [fed == 0, 1, 0, 0]) for fed in range(3)] == [
        ([], []),
        ([], []),
        ([], [0]),
    ]
    assert g.take({"r": None})["r"].stage == "stage2"
    clear = g.add(task("enforce", key="clear"))
    assert [step(g, clear, fed, [0, 1, 0, 0]) for fed in range(3)] == [([], [])] * 3


def test_a_row_fires_when_both_stages_do_and_is_stopped_after_its_pilot_tokens() -> None:
    g = guard(gate())
    row = g.add(task())
    assert step(g, row, 0, [1, 0, 0, 0]) == ([], [])
    assert g.standing({"r": None, "unknown": None}) == {"r": "pending"}
    assert step(g, row, 1, [0, 1, 0, 0]) == ([], [])
    assert step(g, row, 2, [0, 1, 0, 0]) == ([], [0])
    assert g.standing({"r": None}) == {"r": "pending"}, "a row that has fired is not cleared"
    decision = g.take({"r": None})["r"]
    assert (decision.fired, decision.stage, decision.token_index) == (True, "stage2", 2)
    assert decision.actuator == "low_rank_head"
    assert decision.scores == pytest.approx(
        {"stage1": 1 / (1 + 2.718281828**-10), "stage2": 1 / (1 + 2.718281828**-10)}
    )
    assert g.take({"r": None}) == {}


@pytest.mark.parametrize(
    ("prompt", "pilot"), [([0, 0, 0, 0], [0, 1, 0, 0]), ([1, 0, 0, 0], [0, 0, 0, 0])]
)
def test_a_row_with_one_stage_below_its_threshold_passes(
    prompt: list[float], pilot: list[float]
) -> None:
    g = guard(gate())
    row = g.add(task())
    for fed, state in enumerate([prompt, pilot, pilot, pilot]):
        assert step(g, row, fed, state) == ([], [])
    assert not g.take({"r": None})["r"].fired


def test_stage_1_alone_switches_from_the_first_token_on() -> None:
    g = guard(Gate(stage1=Stage(Axis(END, 0), 0.5)))
    row = g.add(task())
    assert [step(g, row, fed, [1, 0, 0, 0]) for fed in range(3)] == [([0], [])] * 3
    assert g.standing({"r": 1}) == {"r": "refusing"}


@pytest.mark.parametrize(("prompt", "fired"), [([1, 0, 0, 0], True), ([0, 1, 0, 0], False)])
def test_a_row_that_is_only_scored_is_decided_by_stage_1_and_never_changed(
    prompt: list[float], fired: bool
) -> None:
    g = guard(gate())
    row = g.add(task("score"))
    assert [step(g, row, fed, prompt) for fed in range(2)] == [([], [])] * 2
    decision = g.take({"r": 0})["r"]
    assert (decision.fired, decision.stage, decision.token_index) == (fired, "stage1", 0)
    assert decision.actuator == "none"


def test_the_last_chunk_of_a_prompt_is_the_one_that_counts() -> None:
    g = guard(Gate(stage1=Stage(Axis(END, 0), 0.5)))
    row = g.add(task())
    assert step(g, row, 0, [1, 0, 0, 0]) == ([0], [])
    assert step(g, row, 0, [0, 0, 0, 0]) == ([], [])
    assert not g.take({"r": None})["r"].fired


def test_a_preempted_row_is_read_again_where_it_was_and_keeps_its_first_decision() -> None:
    g = guard(gate())
    row = g.add(task())
    step(g, row, 0, [1, 0, 0, 0])
    step(g, row, 1, [0, 0, 0, 0])
    row.live = False
    again = g.add(task())
    assert again is row
    assert step(g, again, 2, [0, 1, 0, 0]) == (
        [],
        [0],
    )  # a chunk of the prompt that is being computed anew
    assert step(g, again, 2, [0, 0, 0, 0]) == ([], [])
    assert not g.take({"r": None})["r"].fired


def test_a_reply_that_ends_early_is_judged_on_its_last_token() -> None:
    g = guard(gate())
    row = g.add(task())
    step(g, row, 0, [1, 0, 0, 0])
    judged = g.add(task("judge", fed=1))
    assert judged is row
    assert step(g, judged, 0, [0, 1, 0, 0]) == ([], [0])
    decision = g.take({"r": None})["r"]
    assert (decision.stage, decision.token_index) == ("stage2", 1)


def test_readings_past_the_end_of_a_reply_do_not_count() -> None:
    watch = Stage(Axis(ReadPoint(1, Position("pilot", 2)), 2), 0.5)
    g = guard(gate(watch=watch, watch_every=2, watch_until=8))
    for key, end in (("short", 1), ("long", 3)):
        row = g.add(task(key=key))
        step(g, row, 0, [1, 0, 0, 0])
        for fed in range(1, 6):
            step(g, row, fed, [0, 0, fed == 4, 0])
        assert row.session.decision.fired
        assert g.standing({key: end}) == {key: "pending" if end < 2 else "clear"}
        assert step(g, g.add(task("judge", key=key, fed=end)), 0, [0, 0, 0, 0]) == ([], [])
        decision = g.take({key: end})[key]
        assert (decision.fired, decision.stage, decision.token_index) == (False, "watch", end)


def test_of_a_reply_that_its_client_has_left_everything_read_counts_and_of_an_ended_one_what_it_had_said() -> (
    None
):
    decisions = []
    for ended in (None, 1):
        g = guard(gate())
        row = g.add(task())
        for fed, state in enumerate([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]):
            step(g, row, fed, state)
        decisions.append(g.take({"r": ended})["r"])
    assert [(d.fired, d.stage, d.token_index) for d in decisions] == [
        (True, "stage2", 2),
        (False, "stage1", 0),
    ]


def test_a_row_that_is_far_ahead_of_its_front_end_forgets_its_oldest_readings() -> None:
    watch = Stage(Axis(ReadPoint(1, Position("pilot", 2)), 2), 0.5)
    g = guard(gate(watch=watch, watch_every=1))
    row = g.add(task())
    for fed in range(500):
        step(g, row, fed, [0, 0, fed == 499, 0])
    assert row.before(1).session.decision.token_index == 434
    assert len(row._known) == 66
    assert g.take({"r": 3})["r"].token_index == 434


def test_the_watch_reads_every_few_tokens_until_it_is_told_to_stop() -> None:
    watch = Stage(Axis(ReadPoint(1, Position("pilot", 2)), 2), 0.5)
    g = guard(Gate(stage1=Stage(Axis(END, 0), 0.5), watch=watch, watch_every=2, watch_until=4))
    quiet, loud = [0, 0, 0, 0], [0, 0, 1, 0]
    row = g.add(task())
    assert [step(g, row, fed, quiet if fed % 2 == 0 else loud) for fed in range(6)] == [
        ([], [])
    ] * 6
    assert step(g, row, 6, loud) == ([], [])
    other = g.add(task(key="other"))
    step(g, other, 0, quiet)
    step(g, other, 1, quiet)
    assert step(g, other, 2, loud) == ([], [0])


def test_observing_scores_and_changes_nothing() -> None:
    g = guard(gate())
    row = g.add(task("observe"))
    for fed in range(3):
        assert step(g, row, fed, [1, 1, 0, 0]) == ([], [])
    decision = g.take({"r": None})["r"]
    assert decision.fired
    assert decision.actuator == "none"


def test_refuse_mode_switches_every_token_and_keeps_the_decision() -> None:
    g = guard(gate())
    row = g.add(task())
    for fed in range(3):
        step(g, row, fed, [1, 1, 0, 0])
    again = g.add(task("refuse"))
    assert [step(g, again, fed, [0, 0, 0, 0]) for fed in range(2)] == [([0], [])] * 2
    assert g.take({"r": None})["r"].stage == "stage2"


@pytest.mark.parametrize(("fail", "stops"), [("closed", [0]), ("open", [])])
def test_a_row_whose_decision_is_lost_goes_by_the_failure_rule(fail: str, stops: list[int]) -> None:
    g = guard(gate(fail=fail))
    assert step(g, g.add(task()), 5, [0, 0, 0, 0]) == ([], stops)
    assert g.take({"r": None})["r"].stage == "error"


def test_states_that_are_not_finite_fire() -> None:
    g = guard(gate())
    assert step(g, g.add(task()), 0, [float("nan"), 0, 0, 0]) == ([0], [])


def test_rows_of_several_bundles_are_judged_by_their_own() -> None:
    never = Gate(stage1=Stage(Axis(END, 0), 1.0))
    always = Gate(stage1=Stage(Axis(END, 0), 0.0))
    g = Guard({"a": Tenant("a", never, HEAD), "b": Tenant("b", always, HEAD)}, TOP)
    rows = [(i, g.add(Task(str(i), "ab"[i % 2], "enforce")), 0) for i in range(4)]
    assert g.step(rows, lambda layer: torch.zeros(4, D)) == ([1, 3], [])


def test_new_thresholds_hold_for_requests_that_come_later() -> None:
    g = guard(gate())
    old = g.add(task())
    assert g.set_thresholds("default", {"stage1": 1.0}) == {"stage1": 1.0, "stage2": 0.5}
    new = g.add(task(key="new"))
    step(g, old, 0, [1, 0, 0, 0])
    step(g, new, 0, [1, 0, 0, 0])
    assert g.standing({"r": None, "new": None}) == {"r": "pending", "new": "clear"}
    mixed = [(0, old, 1), (1, new, 1)]
    g.step(mixed, lambda layer: torch.zeros(2, D))
    assert g.step([(0, old, 2), (1, new, 2)], lambda layer: torch.tensor([[0, 1.0, 0, 0]] * 2)) == (
        [],
        [0],
    )
    with pytest.raises(SettingError, match="watch"):
        g.set_thresholds("default", {"watch": 0.5})
    with pytest.raises(SettingError, match="bundle"):
        g.set_thresholds("other", {})


def test_finished_rows_are_forgotten_before_running_ones() -> None:
    g = guard(gate())
    first = g.add(task(key="running"))
    for i in range(9000):
        g.add(task(key=str(i))).live = False
    assert first.live
    assert "running" in g.rows
    assert len(g.rows) <= 8193


def test_settings_travel_and_are_checked() -> None:
    given = GuardSettings({"a": "/x", "b": "/y"}, policy="observe")
    assert GuardSettings.parse({"safeswitch": given.to_dict()}) == given
    assert GuardSettings.parse({}) is None
    assert given.default == "a"
    some = {"bundles": {"a": "/x"}}
    for wrong in (
        {"bundles": {}},
        {"policy": "enforce"},
        {**some, "more": 1},
        {**some, "policy": "x"},
    ):
        with pytest.raises(SettingError):
            GuardSettings.parse({"safeswitch": wrong})


def test_the_stop_token_is_one_that_no_reply_holds() -> None:
    class Config:
        eos_token_id, pad_token_id, vocab_size = [1, 2], 0, 10

    assert stop_token(GuardSettings({"a": "/x"}), Config()) == 0
    Config.pad_token_id = 2
    assert stop_token(GuardSettings({"a": "/x"}), Config()) == 9
    assert stop_token(GuardSettings({"a": "/x"}, stop_token=7), Config()) == 7


def constrained(mode: str = "enforce", key: str = "r") -> Task:
    return Task(key, "default", mode, constrained=True)


STAGE_1 = Gate(stage1=Stage(Axis(END, 0), 0.5))
DIRECT = Gate(stage2=Stage(Axis(PILOT, 1), 0.5))


@pytest.mark.parametrize(
    ("made", "state", "stage"),
    [
        (gate(), [1, 0, 0, 0], "stage1"),
        (STAGE_1, [1, 0, 0, 0], "stage1"),
        (DIRECT, [0, 0, 0, 0], "stage1"),
        (Gate(always=True), [0, 0, 0, 0], "always"),
        (gate(), [float("nan"), 0, 0, 0], "error"),
    ],
)
def test_a_constrained_row_that_stage_1_does_not_clear_is_rolled_back_and_refused(
    made: Gate, state: list[float], stage: str
) -> None:
    g = guard(made)
    row = g.add(constrained())
    assert step(g, row, 0, state) == ([], [0])
    assert step(g, row, 1, [0, 0, 0, 0]) == ([], [0]), (
        "the engine may be a step ahead of its front end"
    )
    assert g.standing({"r": None}) == {"r": "pending"}
    again = g.add(task("refuse"))
    assert again is row
    assert [step(g, again, fed, [0, 0, 0, 0]) for fed in range(2)] == [([0], [])] * 2
    assert g.standing({"r": None}) == {"r": "refusing"}
    decision = g.take({"r": None})["r"]
    assert (decision.fired, decision.stage, decision.token_index) == (True, stage, 0)
    assert decision.actuator == "low_rank_head"


def test_a_constrained_row_that_stage_1_clears_goes_on_under_the_watch() -> None:
    watch = Stage(Axis(ReadPoint(1, Position("pilot", 2)), 2), 0.5)
    g = guard(gate(watch=watch, watch_every=2))
    row = g.add(constrained())
    assert [step(g, row, fed, [0, 1, 0, 0]) for fed in range(3)] == [([], [])] * 3
    assert g.standing({"r": None}) == {"r": "clear"}
    assert [step(g, row, fed, [0, 0, 1, 0]) for fed in (3, 4)] == [([], []), ([], [0])]
    assert g.take({"r": None})["r"].stage == "watch"


def test_who_observes_is_told_what_would_be_done_to_a_constrained_request() -> None:
    for mode, made in (
        ("observe", guard(gate())),
        ("enforce", Guard({"default": Tenant("default", gate(), None)}, TOP)),
    ):
        row = made.add(constrained(mode))
        assert [step(made, row, fed, [fed == 0, 0, 0, 0]) for fed in range(3)] == [([], [])] * 3
        decision = made.take({"r": None})["r"]
        assert (decision.fired, decision.stage, decision.actuator) == (True, "stage1", "none")


def test_constrained_rows_and_others_share_a_step() -> None:
    g = guard(gate())
    rows = [
        (0, g.add(constrained(key="a")), 0),
        (1, g.add(task("enforce", key="b")), 0),
        (2, g.add(task(key="c")), 0),
    ]
    assert g.step(rows, lambda layer: torch.tensor([[1.0, 0, 0, 0]] * 3)) == ([], [0, 1])
    found = g.take(dict.fromkeys("abc"))
    assert [found[key].fired for key in "abc"] == [True, False, False]


def test_a_task_comes_to_the_worker_as_it_was_sent() -> None:
    for sent in (constrained(), task("judge", fed=3)):
        assert Task.of({"safeswitch": sent.to_args()}) == sent
    assert Task.of({}) is None


def test_a_reply_refused_because_its_decision_was_lost_names_the_head_that_refuses() -> None:
    g = guard(gate())
    assert step(g, g.add(task()), 5, [0, 0, 0, 0]) == ([], [0])
    assert g.take({"r": None})["r"].actuator == "low_rank_head"
