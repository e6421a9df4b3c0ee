"""Kinds of harm and what a policy has done by them: sessions worked out by hand, and properties of
drawn rules."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.harms import HARMS, OTHER
from safeswitch.core.types import ReadPoint
from safeswitch.probers.harms import UNREAD, HarmReader, Seen
from safeswitch.switch.actuators.base import LowRankHead, NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.rules import ACTS, Rule, Rules, action_for
from safeswitch.switch.session import Session, at_pilot, at_prompt, at_watch
from tests.switch.test_gate import activations
from tests.switch.test_session import HEAD, stage

KINDS = ("violence", "cyber", OTHER)


class Tells(HarmReader):
    """Says what it is told, row by row, whatever the states are."""

    def __init__(self, *seen: Seen) -> None:
        points = (ReadPoint(2),)
        super().__init__(KINDS, points, torch.zeros(4, 1, 3), torch.zeros(4))
        self.seen, self.asked = seen, list[int]()

    def read(self, activations: Any) -> list[Seen]:
        self.asked.append(len(activations))
        return list(self.seen[: len(activations)])


def seen(category: str, *also: str, severity: Any = "refuse") -> Seen:
    chances = {kind: 0.9 if kind in (category, *also) else 0.1 for kind in KINDS}
    return Seen(category, chances, severity)


def gate(
    reader: HarmReader | None, *scores: float, rules: Rules | None = None, **more: Any
) -> Gate:
    made = Gate(stage1=stage(*scores), harms=reader, **more)
    return made if rules is None else made.with_rules(rules)


def read(gate: Gate, n: int, action: Any = HEAD) -> list[Session]:
    return at_prompt([Session.begin(gate, action)] * n, activations(n), time.perf_counter())


def test_the_kind_of_harm_stands_on_what_fired_and_nothing_is_read_of_the_rest() -> None:
    reader = Tells(seen("cyber", severity="careful"))
    quiet, loud = read(gate(reader, 0.2, 0.8), 2)
    assert (quiet.decision.category, quiet.decision.severity) == ("", "allow")
    assert (loud.decision.category, loud.decision.severity) == ("cyber", "careful")
    assert loud.decision.categories == {"violence": 0.1, "cyber": 0.9, OTHER: 0.1}
    assert reader.asked == [1]
    read(gate(reader, 0.2, 0.3), 2)
    assert reader.asked == [1]


def test_what_a_watch_flags_later_has_its_kind_too() -> None:
    told = (seen("violence"), seen("cyber"))
    watched = gate(Tells(*told), 0.2, 0.3, watch=stage(0.9, 0.1, read="pilot:1"))
    late = at_watch(read(watched, 2), activations(2), [8, 8], 0.0)
    assert [s.decision.category for s in late] == ["violence", ""]


@pytest.mark.parametrize("scores", [(0.2, 0.8), (0.6, 0.4), (float("nan"), 0.9)])
def test_a_reader_that_breaks_down_changes_nothing_but_the_kind(
    scores: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Tells):
        def read(self, activations: Any) -> list[Seen]:
            raise RuntimeError("no states")

    without, broken = read(gate(None, *scores), 2), read(gate(Broken(), *scores), 2)
    for plain, other in zip(without, broken, strict=True):
        assert plain.decision.fired == other.decision.fired
        assert plain.decision.error == other.decision.error
        assert other.decision.category == (OTHER if other.decision.fired else "")
    assert "kinds of harm cannot run" in caplog.text


def test_states_that_are_not_finite_are_of_no_kind() -> None:
    reader = HarmReader(KINDS, (ReadPoint(2),), torch.ones(4, 1, 3), torch.zeros(4))
    states = torch.tensor([[0.0, 0.0, 0.0], [float("nan"), 0.0, 0.0]])
    first, second = reader.read(replace(activations(2), states={ReadPoint(2): states}))
    assert set(first.categories.values()) == {0.5}
    assert second == UNREAD


def acts(rules: Rules, *told: Seen, scores: tuple[float, ...]) -> list[tuple[bool, str, str]]:
    found = read(gate(Tells(*told), *scores, rules=rules), len(scores))
    return [(s.decision.fired, s.decision.act, s.decision.actuator) for s in found]


def test_each_act_does_what_it_says() -> None:
    told = [seen("cyber")]
    expected = {
        "refuse": (True, "low_rank_head"),
        "careful": (True, "system_prompt"),
        "annotate": (True, "none"),
        "log": (True, "none"),
        "allow": (False, "none"),
    }
    for act, (fired, action) in expected.items():
        rules = Rules(kinds=(("cyber", Rule(act)),))  # type: ignore[arg-type]
        assert acts(rules, *told, scores=(0.8,)) == [(fired, act, action)]
        assert acts(rules, seen("violence"), scores=(0.8,)) == [(True, "refuse", "low_rank_head")]


def test_a_threshold_of_a_kind_stands_in_for_the_switchs_own_on_both_sides_of_it() -> None:
    rules = Rules(kinds=(("cyber", Rule("refuse", 0.9)), ("violence", Rule("refuse", 0.3))))
    told = (seen("cyber"), seen("violence"), seen(OTHER))
    sessions = read(gate(Tells(*told), 0.8, 0.4, 0.4, rules=rules), 3)
    assert [s.decision.fired for s in sessions] == [False, True, False]
    assert sessions[1].decision.thresholds == {"stage1": 0.3}
    assert acts(rules, *told, scores=(0.95, 0.2, 0.6)) == [
        (True, "refuse", "low_rank_head"),
        (False, "", "none"),
        (True, "refuse", "low_rank_head"),
    ]


def test_a_milder_rule_holds_where_the_stricter_ones_threshold_is_not_reached() -> None:
    rules = Rules(kinds=(("cyber", Rule("refuse", 0.9)), ("violence", Rule("careful", 0.3))))
    both = seen("cyber", "violence")
    assert [act for _, act, _ in acts(rules, both, both, scores=(0.95, 0.6))] == [
        "refuse",
        "careful",
    ]


def test_stage_two_keeps_what_the_rule_says_and_a_failure_is_refused() -> None:
    rules = Rules(Rule("log"))
    staged = gate(Tells(seen("cyber"), UNREAD), 0.8, float("nan"), rules=rules, stage2=stage(0.9))
    first = read(staged, 2)
    assert first[0].pending
    assert (first[1].decision.act, first[1].decision.actuator) == ("refuse", "low_rank_head")
    second = at_pilot(first[:1], activations(1), [3], 0.0)[0].decision
    assert (second.fired, second.act, second.actuator) == (True, "log", "none")


def test_what_cannot_be_read_is_held_to_the_strictest_rule_of_all() -> None:
    rules = Rules(Rule("annotate"), kinds=(("cyber", Rule("refuse")),))
    assert acts(rules, UNREAD, scores=(0.8,)) == [(True, "refuse", "low_rank_head")]


def test_a_watch_is_held_to_the_strictest_act_however_high_stage_one_scored() -> None:
    rules = Rules(kinds=(("cyber", Rule("allow", 0.3)), ("violence", Rule("refuse", 0.9))))
    both = seen("cyber", "violence")
    watched = gate(Tells(both, both), 0.2, 0.5, rules=rules, watch=stage(0.9, 0.9, read="pilot:1"))
    first = read(watched, 2)
    assert [s.decision.act for s in first] == ["", "allow"]
    late = at_watch(first, activations(2), [8, 8], 0.0)
    assert [(s.decision.fired, s.decision.act) for s in late] == [(True, "refuse")] * 2


def test_an_act_is_on_record_only_once_it_is_done() -> None:
    staged = gate(Tells(seen("cyber")), 0.8, rules=Rules(Rule("annotate")), stage2=stage(0.1))
    (pending,) = read(staged, 1)
    (cleared,) = at_pilot([pending], activations(1), [3], 0.0)
    assert (pending.decision.act, cleared.decision.act, cleared.decision.fired) == ("", "", False)


def test_thresholds_are_refused_where_stage_one_has_none() -> None:
    product = Gate(stage1=stage(0.5), stage2=stage(0.5), rule="product")
    with pytest.raises(SettingError, match="stage 1 under the rule 'and'"):
        product.with_rules(Rules(Rule("refuse", 0.3)))
    assert product.with_rules(Rules(Rule("log"))).rules == Rules(Rule("log"))


RULES = st.builds(
    Rule, st.sampled_from(ACTS), st.one_of(st.none(), st.integers(0, 8).map(lambda n: n / 8))
)
DRAWN = st.builds(
    lambda default, kinds: Rules(default, tuple(kinds.items())),
    RULES,
    st.dictionaries(st.sampled_from(tuple(HARMS)), RULES),
)
SEEN = st.builds(
    lambda kinds: seen(kinds[0], *kinds[1:]),
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=3, unique=True),
)


@given(DRAWN, SEEN, st.integers(0, 16).map(lambda n: n / 16))
def test_the_strictest_rule_that_is_reached_wins(rules: Rules, told: Seen, score: float) -> None:
    named = dict(rules.kinds)
    reached = []
    for kind in told.kinds:
        rule = named.get(kind, rules.default)
        if score > (0.5 if rule.threshold is None else rule.threshold):
            reached.append(rule.act)
    [(fired, act, action)] = acts(rules, told, scores=(score,))
    strictest = next((act for act in ACTS if act in reached), "")
    assert act == strictest
    assert fired == (strictest not in ("", "allow"))
    assert action == (action_for(strictest, HEAD).kind if fired else "none")


@given(DRAWN, SEEN, st.integers(0, 16).map(lambda n: n / 16))
def test_under_observe_nothing_is_done_whatever_the_rules_say(
    rules: Rules, told: Seen, score: float
) -> None:
    [session] = read(gate(Tells(told), score, rules=rules), 1, NoAction())
    assert not session.acts
    assert session.decision.actuator == "none"


@given(DRAWN)
def test_rules_travel_as_json_and_careful_can_be_taken_out(rules: Rules) -> None:
    assert Rules.parse(rules.to_dict()) == rules
    strict = rules.without_careful()
    assert "careful" not in strict.acts
    assert [r.threshold for r in strict.all] == [r.threshold for r in rules.all]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"default": {"act": "shout", "threshold": None}, "kinds": {}}, "act must be one of"),
        ({"default": {"act": "log", "threshold": None}}, "'kinds' is missing"),
        (
            {
                "default": {"act": "log", "threshold": None},
                "kinds": {"magic": {"act": "log", "threshold": None}},
            },
            "unknown field 'magic'",
        ),
    ],
)
def test_rules_that_say_anything_else_are_refused(told: Any, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        Rules.parse(told)


def test_the_head_is_the_switchs_own() -> None:
    assert isinstance(HEAD, LowRankHead)
    assert action_for("refuse", HEAD) is HEAD
