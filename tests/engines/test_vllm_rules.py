"""Kinds of harm and a policy's rules in vLLM, the guard by hand (``test_vllm_bundles.py`` asks a
real engine)."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from safeswitch.core.harms import OTHER
from safeswitch.engines.vllm.guard import Guard, Tenant
from safeswitch.engines.vllm.settings import Task
from safeswitch.probers.harms import HarmReader
from safeswitch.switch.rules import Rule, Rules
from tests.engines.test_vllm_guard import END, HEAD, TOP, D, gate, step

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
