"""Kinds of harm and a policy's rules in vLLM: the guard by hand, then a real engine, with the
transformers engine as the independent expectation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from safeswitch.core.harms import OTHER
from safeswitch.core.types import Reply
from safeswitch.engines.context import Context
from safeswitch.engines.vllm.guard import Guard, Tenant
from safeswitch.engines.vllm.settings import Task
from safeswitch.probers.harms import HarmReader
from safeswitch.switch.rules import Rule, Rules
from safeswitch.switch.switch import Switch
from tests.engines.test_vllm_guard import END, HEAD, TOP, D, gate, step
from tests.engines.vllm_made import NEW, SUPPRESS, needs_vllm, reference, switch, vllm_engine
from tests.switch.made import requests

CYBER_LOGGED = Rules(kinds=(("cyber", Rule("log")),))


def reader(width: int = D) -> HarmReader:
    """The third number of a state says violence where it is positive, cyber where negative."""
    weight = torch.zeros(4, 1, width)
    weight[0, 0, 2], weight[1, 0, 2] = 9.0, -9.0
    return HarmReader(
        ("violence", "cyber", OTHER), (END,), weight, torch.tensor([0.0, 0.0, -9.0, -9.0])
    )


def ruled(key: str, rules: Rules, mode: str = "enforce") -> Task:
    return Task(key, "default", mode, rules=json.dumps(rules.to_dict()))


def test_rows_of_one_step_are_each_held_to_the_rules_that_they_came_with() -> None:
    made = replace(gate(harms=reader()), stage2=None)
    guard = Guard({"default": Tenant("default", made, HEAD)}, TOP)
    tasks = [ruled("a", CYBER_LOGGED), ruled("b", CYBER_LOGGED), ruled("c", Rules())]
    rows = [(i, guard.add(task), 0) for i, task in enumerate(tasks)]
    states = torch.tensor([[1, 0, -1, 0], [1, 0, 1, 0], [1, 0, -1, 0]], dtype=torch.float32)
    assert guard.step(rows, lambda site: states) == ([1, 2], [])
    found = guard.take({"a": None, "b": None, "c": None})
    assert [(d.fired, d.act, d.category) for d in found.values()] == [
        (True, "log", "cyber"),
        (True, "refuse", "violence"),
        (True, "refuse", "cyber"),
    ]


def test_a_logged_row_waits_for_stage_two_and_is_left_alone_when_that_fires() -> None:
    guard = Guard({"default": Tenant("default", gate(harms=reader()), HEAD)}, TOP)
    row = guard.add(ruled("r", CYBER_LOGGED, "pilot"))
    said = [step(guard, row, fed, [fed == 0, 1, -1, 0]) for fed in range(4)]
    assert said == [([], [])] * 4
    assert guard.standing({"r": None}) == {"r": "clear"}
    decision = guard.take({"r": None})["r"]
    assert (decision.fired, decision.act, decision.actuator) == (True, "log", "none")


def test_equal_rules_are_scored_together_and_thresholds_are_put_in_force_under_rules_too() -> None:
    guard = Guard({"default": Tenant("default", replace(gate(), stage2=None), HEAD)}, TOP)
    first, second = (guard.add(ruled(key, Rules())) for key in "ab")
    assert first.tenant is second.tenant
    guard.set_thresholds("default", {"stage1": 1.0})
    assert step(guard, guard.add(ruled("c", Rules())), 0, [1, 0, 0, 0]) == ([], [])
    assert step(guard, second, 0, [1, 0, 0, 0]) == ([0], [])


@cache
def seeing() -> Switch:
    """The fitted switch of other tests, with a reader that tells its requests apart."""
    made = switch("llama")
    states = reference("llama").collect(requests(), [END], max_new_tokens=0)[1].at(END)
    middle = states.median(0).values
    axis = int((states - middle).abs().mean(0).argmax())
    weight = torch.zeros(4, 1, states.shape[1])
    weight[0, 0, axis], weight[1, 0, axis] = 1.0, -1.0
    bias = torch.tensor([-float(middle[axis]), float(middle[axis]), -9.0, -9.0])
    seen = HarmReader(("violence", "cyber", OTHER), (END,), weight, bias)
    return replace(made, gate=replace(made.gate, harms=seen))


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    made = vllm_engine("llama", switch=seeing())
    yield made
    made.close()


def told(replies: list[Reply]) -> list[tuple[Any, ...]]:
    return [
        (r.token_ids, r.decision.fired, r.decision.act, r.decision.category, r.decision.severity)
        for r in replies
    ]


@needs_vllm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rules", [None, CYBER_LOGGED, Rules(Rule("annotate", 0.0))])
def test_kinds_and_acts_are_those_of_the_transformers_engine(
    engine: Any, monkeypatch: pytest.MonkeyPatch, rules: Rules | None
) -> None:
    made = seeing()
    if rules is not None:
        made = replace(made, gate=made.gate.with_rules(rules))
        told_of = "safeswitch.engines.vllm.engine.Context"
        monkeypatch.setattr(told_of, lambda: Context(rules=rules))
    options = {"max_new_tokens": NEW, "do_sample": False}
    expected = told(reference("llama").generate(requests(), made, **options, **SUPPRESS))
    assert told(engine.generate(requests(), **options)) == expected
    fired = [row for row in expected if row[1]]
    if rules is CYBER_LOGGED or rules is None:
        assert {row[3] for row in fired} == {"violence", "cyber"}
    assert {row[2] for row in fired} == {
        None: {""},
        CYBER_LOGGED: {"log", "refuse"},
    }.get(rules, {"annotate"})
