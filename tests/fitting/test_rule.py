"""The rule of two stages that ``auto`` takes: the paper's, unless the product is better by more
than chance."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import PROMPT_END, Decision, Example, Message, Reply
from safeswitch.fitting.fit import answered_rows
from safeswitch.fitting.gate import GateFit, fit_gate
from safeswitch.fitting.observe import Observed, ReadPrompts
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.statistics.intervals import Paired
from tests.fitting.test_ordinary import lookalikes
from tests.switch.made import requests

WIDTH = 8
REPLY = Reply("", (), "stop", Decision(False, "none"), 1)


def plan(rule: Literal["auto", "and", "product"] = "auto") -> FitPlan:
    chosen = FitSettings(readers=("layers",), layers=(1, 2), budget=0.05, rule=rule)
    return FitPlan(4, chosen)


def states(read: FitPlan, harm: Tensor, complying: Tensor, seed: int) -> Activations:
    """Prompts show ``harm``, replies ``complying`` (both ``[n]``, in standard deviations of the
    noise), each in one direction."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for place, point in enumerate(read.points):
        signal = harm if point.position == PROMPT_END else complying
        noise = torch.randn(len(signal), WIDTH, generator=draw)
        noise[:, place % 2] += signal
        found[point] = noise
    return Activations(found, texts=("text",) * len(harm))


def part(read: FitPlan, n: int, seed: int, *, cautious: float) -> Observed:
    """``n`` requests, half of them unsafe; of the safe ones a fraction ``cautious`` sounds unsafe
    and is refused, the model complies with all others but a third of the unsafe ones."""
    draw = torch.Generator().manual_seed(1000 + seed)
    unsafe = torch.arange(n) % 2 == 0
    chance = torch.rand(n, generator=draw)
    sounds = torch.where(unsafe, torch.ones(n, dtype=torch.bool), chance < cautious)
    complied = torch.where(unsafe, chance > 1 / 3, ~sounds)
    told = states(read, 2.0 * sounds.float(), 6.0 * complied.float() - 3.0, seed)
    rows = tuple(
        Example(f"{seed}-{i}", (Message("user", f"{seed} {i}"),), "unsafe" if bad else "safe")
        for i, bad in enumerate(unsafe.tolist())
    )
    before = {p: told.at(p) for p in read.points if p.position == PROMPT_END}
    prompts = ReadPrompts(rows, Activations(before, texts=told.texts))
    return Observed(rows, (REPLY,) * n, complied, told, prompts)


def fitted(seed: int, cautious: float, *, answered: int = 400) -> GateFit:
    """A gate whose calibration part has ``answered`` requests with replies."""
    read = plan()
    train, validation = (part(read, 600, 3 * seed + i, cautious=cautious) for i in (0, 1))
    calibration = part(read, 2000, 3 * seed + 2, cautious=cautious)
    some = torch.arange(2000) < answered
    return fit_gate(read, train, validation, calibration.select(some))


@pytest.mark.parametrize("seed", [0, 3, 9])
def test_where_replies_add_nothing_about_harm_the_papers_rule_stays(seed: int) -> None:
    """On 30 ordinary requests the product's threshold is noisy: with the last seed it lies low
    enough to catch more than the first stage, whose threshold comes from all of them."""
    found = fitted(seed, 0.0, answered=60)
    assert found.gate.rule == "and"
    caught = found.calibration["caught_on_validation"]
    assert (caught["product"] > caught["and"]) == (seed == 9)


def test_where_the_model_refuses_what_only_sounds_unsafe_the_product_is_taken() -> None:
    found = fitted(0, 0.15)
    assert found.gate.rule == "product"
    caught = found.calibration["caught_on_validation"]
    assert caught["product"] > caught["and"] + 0.2
    told = found.calibration["product_against_and"]
    assert told["only_first"] > told["only_second"]
    assert told["p_value"] < 0.05


def test_the_product_is_not_taken_where_the_gate_without_it_catches_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it beats a first stage whose threshold comes from the same few requests."""
    beaten = Paired(only_first=9, only_second=0, p_value=0.004)
    monkeypatch.setattr("safeswitch.fitting.gate.mcnemar", lambda *rows: beaten)
    found = fitted(0, 0.0, answered=60)
    caught = found.calibration["caught_on_validation"]
    assert caught["and"] > caught["product"]
    assert found.gate.rule == "and"


def test_ordinary_calibration_requests_are_answered_first() -> None:
    rows = [*lookalikes(50), *requests(), *requests()]
    safe = sum(row.ordinary for row in rows)
    unsafe = sum(row.unsafe for row in rows)
    for most in (16, 24, 40):
        places = answered_rows({"calibration": rows}, FitSettings(answered=most, budget=0.2))
        some = [rows[i] for i in places["calibration"]]
        assert len(some) == most
        assert sum(row.ordinary for row in some) == min(safe, most - min(unsafe, most // 4))
        assert sum(row.unsafe for row in some) == most - sum(row.ordinary for row in some)
