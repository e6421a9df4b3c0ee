"""The gate's decisions against the rules worked out by hand, and what it does when a prober
fails."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError
from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.probers.base import Prober
from safeswitch.switch.gate import Gate, Stage

HERE = ReadPoint(2, PROMPT_END)
NAN = float("nan")


class Says(Prober):
    """Gives fixed scores, or raises."""

    kind = "test-says"

    def __init__(
        self,
        *scores: float,
        points: tuple[ReadPoint, ...] = (HERE,),
        error: Exception | None = None,
    ) -> None:
        self.scores, self.points, self.error = scores, points, error

    def fit(
        self, activations: Activations, labels: Tensor, *, validation: Any = None, seed: int = 0
    ) -> Self:
        return self

    def score(self, activations: Activations) -> Tensor:
        if self.error is not None:
            raise self.error
        return torch.tensor(self.scores)

    def state(self) -> Any:
        raise NotImplementedError

    @classmethod
    def from_state(cls, config: Any, tensors: Any) -> Self:
        raise NotImplementedError


def activations(n: int) -> Activations:
    return Activations({HERE: torch.zeros(n, 3)})


S1, S2 = (0.2, 0.6, 0.6, 0.9), (0.9, 0.4, 0.8, 0.5)


def test_the_and_rule_asks_stage_two_only_about_rows_that_pass_stage_one() -> None:
    gate = Gate(stage1=Stage(Says(*S1), 0.5), stage2=Stage(Says(*S2), 0.45))
    first = gate.at_prompt(activations(4))
    assert first.pending.tolist() == [False, True, True, True]
    assert first.fired.tolist() == [False] * 4
    second = gate.at_pilot(activations(4), first.scores)
    assert (second.fired & first.pending).tolist() == [False, False, True, True]


def test_the_product_rule_compares_the_product_with_one_threshold() -> None:
    gate = Gate(
        stage1=Stage(Says(*S1), 0.99),
        stage2=Stage(Says(*S2), 0.99),
        rule="product",
        product_threshold=0.4,
    )
    first = gate.at_prompt(activations(4))
    second = gate.at_pilot(activations(4), first.scores)
    assert (second.fired & first.pending).tolist() == [
        a * b > 0.4 for a, b in zip(S1, S2, strict=True)
    ]
    assert gate.thresholds() == {"product": 0.4}


def test_the_product_rule_drops_no_row_that_could_still_pass() -> None:
    gate = Gate(
        stage1=Stage(Says(0.41, 0.39), 0.5),
        stage2=Stage(Says(1.0, 1.0), 0.5),
        rule="product",
        product_threshold=0.4,
    )
    assert gate.at_prompt(activations(2)).pending.tolist() == [True, False]


def test_a_score_equal_to_the_threshold_does_not_fire() -> None:
    assert Gate(stage1=Stage(Says(0.5, 0.75), 0.5)).at_prompt(activations(2)).fired.tolist() == [
        False,
        True,
    ]


def test_stage_one_alone_decides_at_once_and_stage_two_alone_waits_for_every_row() -> None:
    alone = Gate(stage1=Stage(Says(0.1, 0.9), 0.5)).at_prompt(activations(2))
    assert (alone.fired.tolist(), alone.pending.tolist()) == ([False, True], [False, False])
    later = Gate(stage2=Stage(Says(0.1, 0.9), 0.5)).at_prompt(activations(2))
    assert (later.fired.tolist(), later.pending.tolist()) == ([False, False], [True, True])


def test_always_fires_without_asking_a_prober() -> None:
    gate = Gate(stage1=Stage(Says(error=RuntimeError("asked")), 0.5), always=True)
    verdict = gate.at_prompt(activations(3))
    assert (verdict.fired.all(), verdict.errors) == (torch.tensor(True), (None,) * 3)


@pytest.mark.parametrize(("fail", "fires"), [("closed", True), ("open", False)])
@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf")], ids=str)
def test_a_score_that_is_not_finite_fires_only_when_failing_closed(
    fail: Any, fires: bool, bad: float
) -> None:
    broken = Stage(Says(0.1, bad), 0.5)
    one = Gate(stage1=broken, fail=fail).at_prompt(activations(2))
    assert one.fired.tolist() == [False, fires]
    assert one.errors == (None, "the score is not finite")
    pilot = Gate(stage1=Stage(Says(0.9, 0.9), 0.5), stage2=broken, fail=fail).at_pilot(
        activations(2), torch.tensor([0.9, 0.9])
    )
    assert pilot.fired.tolist() == [False, fires]
    running = ReadPoint(2, Position("pilot", 4))
    watch = Stage(Says(0.1, bad, points=(running,)), 0.5)
    states = Activations({running: torch.zeros(2, 3)})
    assert Gate(watch=watch, fail=fail).at_watch(states).fired.tolist() == [False, fires]


@pytest.mark.parametrize("rule", ["and", "product"])
def test_a_failed_stage_one_is_decided_at_once_not_left_to_stage_two(rule: Any) -> None:
    for fail, fires in (("closed", True), ("open", False)):
        gate = Gate(
            stage1=Stage(Says(NAN), 0.5), stage2=Stage(Says(0.0), 0.5), rule=rule, fail=fail
        )  # type: ignore[arg-type]
        verdict = gate.at_prompt(activations(1))
        assert (verdict.fired.tolist(), verdict.pending.tolist()) == ([fires], [False])


def test_a_prober_that_raises_or_gives_another_shape_is_a_failure_with_its_reason() -> None:
    raised = Gate(stage1=Stage(Says(error=RuntimeError("no layer")), 0.5)).at_prompt(activations(2))
    assert raised.fired.tolist() == [True, True]
    assert raised.errors == ("RuntimeError: no layer",) * 2
    shaped = Gate(stage1=Stage(Says(0.1, 0.1, 0.1), 0.5), fail="open").at_prompt(activations(2))
    assert shaped.fired.tolist() == [False, False]
    assert "expected scores of shape (2,)" in str(shaped.errors[0])


def test_pilot_points_and_layers_follow_from_what_the_probers_read() -> None:
    late, later = ReadPoint(1, Position("pilot", 2)), ReadPoint(3, Position("pilot", 5))
    gate = Gate(
        stage1=Stage(Says(0.1), 0.5), stage2=Stage(Says(0.1, points=(HERE, late, later)), 0.5)
    )
    assert gate.pilot == 5
    assert gate.prompt_points == (HERE,)
    assert gate.pilot_points == (late, later)
    assert gate.layers == (1, 2, 3)


def test_settings_outside_their_range_are_refused_with_what_is_allowed() -> None:
    stage = Stage(Says(0.1), 0.5)
    with pytest.raises(SettingError, match=r"threshold must lie in \[0.0, 1.0\]; got nan"):
        Stage(Says(0.1), NAN)
    with pytest.raises(SettingError, match="rule must be one of 'and', 'product'; got 'or'"):
        Gate(stage1=stage, rule="or")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="fail must be one of"):
        Gate(stage1=stage, fail="ajar")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="watch_every must lie in"):
        Gate(watch_every=0)
    with pytest.raises(SettingError, match="product rule needs stage1 and stage2"):
        Gate(stage1=stage, rule="product")
    with pytest.raises(SettingError, match="stage1 must read the prompt only"):
        Gate(stage1=Stage(Says(0.1, points=(ReadPoint(1, Position("pilot", 1)),)), 0.5))


@pytest.mark.parametrize(
    ("points", "named"),
    [
        ((HERE,), "reads prompt_end"),
        ((), "reads no states"),
        (
            (ReadPoint(1, Position("pilot", 4)), ReadPoint(1, Position("window", 8))),
            "reads pilot:4, window:8",
        ),
    ],
)
def test_a_watch_that_cannot_read_a_running_reply_is_refused(
    points: tuple[ReadPoint, ...], named: str
) -> None:
    with pytest.raises(
        SettingError, match=f"one or more pilot points and nothing else; its prober {named}"
    ):
        Gate(watch=Stage(Says(0.1, points=points), 0.5))
    Gate(
        watch=Stage(
            Says(
                0.1, points=(ReadPoint(1, Position("pilot", 4)), ReadPoint(2, Position("pilot", 4)))
            ),
            0.5,
        )
    )


@pytest.mark.parametrize("rule", ["and", "product"])
@pytest.mark.parametrize("second", [True, False])
def test_an_undecided_gate_asks_every_stage_and_never_fires(rule: Any, second: bool) -> None:
    read = (ReadPoint(2, Position("pilot", 1)),)
    stage2 = Stage(Says(1.0, 0.1, NAN, points=read), 0.2) if second else None
    watch = Stage(Says(1.0, 0.1, NAN, points=read), 0.3)
    both = rule if second else "and"
    gate = Gate(Stage(Says(0.01, 0.9, 1.0), 0.5), stage2, watch, rule=both).undecided()
    states = Activations({HERE: torch.zeros(3, 3), read[0]: torch.zeros(3, 3)})
    first = gate.at_prompt(states)
    assert first.pending.tolist() == [second] * 3
    readings = [first, gate.at_watch(states)]
    if second:
        readings.append(gate.at_pilot(states, first.scores))
    assert not any(reading.fired.any() for reading in readings)
    assert Gate(always=True).undecided().at_prompt(states).fired.tolist() == [False] * 3


def test_the_old_name_of_the_points_behind_appended_tokens_works_with_a_warning() -> None:
    gate = Gate(always=True)
    with pytest.warns(DeprecationWarning, match="apart_points is called reread_points now"):
        assert gate.apart_points == gate.reread_points == ()
