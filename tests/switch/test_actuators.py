"""Actuators against their formulas, and through their stored form."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.types import Message
from safeswitch.switch.actuators import (
    ACTUATORS,
    Actuator,
    FullHead,
    LowRankHead,
    NoAction,
    Steering,
    SystemPrompt,
    actuator_from_state,
)  # fmt: skip

D, V, N = 5, 7, 3
DRAW = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW)


HIDDEN, LOGITS = rand(N, D), rand(N, V)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_low_rank_head_adds_beta_times_up_down_h(beta: float) -> None:
    head = LowRankHead(rand(2, D), rand(V, 2), beta)
    for n in range(N):
        expected = LOGITS[n] + beta * (head.up @ (head.down @ HIDDEN[n]))
        torch.testing.assert_close(head.apply(LOGITS, HIDDEN)[n], expected)
    assert head.rank == 2


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_full_head_interpolates_between_the_two_heads(beta: float) -> None:
    head = FullHead(rand(V, D), rand(V), beta)
    for n in range(N):
        expected = (1 - beta) * LOGITS[n] + beta * (head.weight @ HIDDEN[n] + head.bias)
        torch.testing.assert_close(head.apply(LOGITS, HIDDEN)[n], expected)


EXAMPLES: list[Actuator] = [
    NoAction(), LowRankHead(rand(2, D), rand(V, 2), 0.25), FullHead(rand(V, D), rand(V), 0.5), SystemPrompt("Be careful."),
    Steering((1, 3), rand(2, D), 2.5),
]


def test_every_kind_of_actuator_is_tried_below() -> None:
    assert {type(a).kind for a in EXAMPLES} == set(ACTUATORS)


@pytest.mark.parametrize("actuator", EXAMPLES, ids=lambda a: a.kind)
def test_an_actuator_comes_back_from_its_state(actuator: Actuator) -> None:
    config, tensors = actuator.state()
    again = actuator_from_state(config, tensors)
    assert type(again) is type(actuator)
    for field in fields(actuator):
        old, new = getattr(actuator, field.name), getattr(again, field.name)
        assert torch.equal(old, new) if isinstance(old, torch.Tensor) else old == new


def test_to_moves_every_tensor_and_keeps_the_rest() -> None:
    head = FullHead(rand(V, D), rand(V), 0.5)
    moved = head.to(torch.device("cpu"), torch.bfloat16)
    assert (moved.weight.dtype, moved.bias.dtype, moved.beta) == (torch.bfloat16, torch.bfloat16, 0.5)
    torch.testing.assert_close(moved.weight.float(), head.weight, atol=0, rtol=2**-8)
    assert head.weight.dtype == torch.float32


def test_a_system_prompt_goes_in_front_or_joins_the_one_there() -> None:
    user = Message("user", "hi")
    assert SystemPrompt("A").edit((user,)) == (Message("system", "A"), user)
    assert SystemPrompt("A").edit((Message("system", "B"), user)) == (Message("system", "A\nB"), user)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankHead(rand(2, D), rand(V, 3)), "do not fit"),
        (lambda: LowRankHead(rand(2, D), rand(V, 2), 1.5), r"beta must lie in \[0.0, 1.0\]; got 1.5"),
        (lambda: FullHead(rand(V, D), rand(V + 1)), "do not fit"),
        (lambda: FullHead(rand(V, D), rand(V), float("nan")), "beta must lie in"),
        (lambda: SystemPrompt("  "), "text is empty"),
        (lambda: Steering((1,), rand(2, D)), "1 layers but vectors"),
        (lambda: LowRankHead(rand(2, D), rand(V, 2)).check(D, V + 1), r"made for \[V=7, d=5\], but the model has \[V=8, d=5\]"),
        (lambda: FullHead(rand(V, D), rand(V)).check(D + 1, V), "made for"),
        (lambda: actuator_from_state({"kind": "laser"}, {}), "unknown actuator 'laser'; known: full_head, low_rank_head"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_fields_that_are_missing_or_too_many_are_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="'low_rank_head' cannot be rebuilt"):
        actuator_from_state({"kind": "low_rank_head"}, {"down": rand(2, D)})
    with pytest.raises(ArtifactError, match="'none' cannot be rebuilt"):
        actuator_from_state({"kind": "none", "more": 1}, {})
