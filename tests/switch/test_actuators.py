"""Actuators against their formulas, and through their stored form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.types import Message
from safeswitch.switch.actuators.base import (
    ACTUATORS,
    Actuator,
    Canned,
    FullHead,
    LowRankHead,
    NoAction,
    Steering,
    SystemPrompt,
    actuator_from_state,
)  # fmt: skip
from safeswitch.switch.actuators.heads import EarlyHead, SoftHead, SparseHead
from safeswitch.switch.actuators.prompts import FramedPrompt
from safeswitch.switch.actuators.weights import Adapter, Weights

D, V, N = 5, 7, 3
DRAW = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW)


HIDDEN, LOGITS = rand(N, D), rand(N, V)
NONE = LowRankHead(rand(2, D), rand(V, 2))


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
    NoAction(),
    LowRankHead(rand(2, D), rand(V, 2), 0.25),
    FullHead(rand(V, D), rand(V), 0.5),
    SystemPrompt("Be careful."),
    Steering((1, 3), rand(2, D), 2.5),
    Canned("No."),
    FramedPrompt("Be careful.", (("a", "b"),), "<", ">"),
    SparseHead.of(rand(V, D).where(rand(V, D) > 0, 0), 0.5),
    SoftHead(LowRankHead(rand(2, D), rand(V, 2)), 0.25, 0.5),
    EarlyHead(FullHead(rand(V, D), rand(V)), 3, 2.0, 4),
    Adapter({"a.b": (rand(2, D), rand(V, 2))}, 0.5),
    Weights.of({"a": rand(2, 3), "b": torch.zeros(2), "c": rand(4)}, 2.0),
]


def test_every_kind_of_actuator_is_tried_below() -> None:
    assert {type(a).kind for a in EXAMPLES} == set(ACTUATORS)


@pytest.mark.parametrize("actuator", EXAMPLES, ids=lambda a: a.kind)
def test_an_actuator_comes_back_from_its_state(actuator: Actuator) -> None:
    config, tensors = actuator.state()
    again = actuator_from_state(config, tensors)
    assert type(again) is type(actuator)
    told, held = again.state()
    assert json.dumps(told) == json.dumps(config)
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name], tensors[name]) for name in held)


def test_a_sparse_head_is_its_difference_and_a_soft_one_rises_between_its_bars() -> None:
    difference = rand(V, D).where(rand(V, D) > 0, 0)
    found = SparseHead.of(difference, 0.5).apply(LOGITS, HIDDEN)
    torch.testing.assert_close(found, LOGITS + 0.5 * HIDDEN @ difference.T)
    scores = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9, float("nan")])
    fraction = SoftHead(NONE, 0.25, 0.75).fraction(scores)
    assert fraction.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("common", [1, 3, V])
def test_an_early_head_mixes_probabilities_over_what_both_heads_rank_high(common: int) -> None:
    inner = FullHead(rand(V, D), rand(V))
    found = EarlyHead(inner, alpha=3.0, common=common).apply(LOGITS, HIDDEN)
    for n in range(N):
        base, expert = LOGITS[n].tolist(), inner.apply(LOGITS, HIDDEN)[n].tolist()
        order = [sorted(range(V), key=odds.__getitem__, reverse=True) for odds in (base, expert)]
        k = next(k for k in range(1, V + 1) if len(set(order[0][:k]) & set(order[1][:k])) >= common)
        space = set(order[0][:k]) & set(order[1][:k])
        p, q = (torch.tensor(odds).softmax(0).tolist() for odds in (base, expert))
        mixed = [max(0.0, p[v] + 3 * (q[v] - p[v])) if v in space else 0.0 for v in range(V)]
        if sum(mixed):
            torch.testing.assert_close(found[n].softmax(0), torch.tensor(mixed) / sum(mixed))


def test_a_frame_goes_around_the_conversation() -> None:
    system, first, reply, last = (
        Message(r, t)
        for r, t in (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    )
    edited = FramedPrompt("F", (("q", "r"),), "<", ">").edit((system, first, reply, last))
    assert [(m.role, m.content) for m in edited] == [
        ("system", "F\nS"),
        ("user", "q"),
        ("assistant", "r"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "<c>"),
    ]
    assert FramedPrompt(after="!").edit((last,)) == (Message("user", "c!"),)


def test_to_moves_every_tensor_and_keeps_the_rest() -> None:
    head = FullHead(rand(V, D), rand(V), 0.5)
    moved = head.to(torch.device("cpu"), torch.bfloat16)
    assert (moved.weight.dtype, moved.bias.dtype, moved.beta) == (
        torch.bfloat16,
        torch.bfloat16,
        0.5,
    )
    torch.testing.assert_close(moved.weight.float(), head.weight, atol=0, rtol=2**-8)
    assert head.weight.dtype == torch.float32


def test_a_system_prompt_goes_in_front_or_joins_the_one_there() -> None:
    user = Message("user", "hi")
    assert SystemPrompt("A").edit((user,)) == (Message("system", "A"), user)
    assert SystemPrompt("A").edit((Message("system", "B"), user)) == (
        Message("system", "A\nB"),
        user,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankHead(rand(2, D), rand(V, 3)), "do not fit"),
        (
            lambda: LowRankHead(rand(2, D), rand(V, 2), 1.5),
            r"beta must lie in \[0.0, 1.0\]; got 1.5",
        ),
        (lambda: FullHead(rand(V, D), rand(V + 1)), "do not fit"),
        (lambda: FullHead(rand(V, D), rand(V), float("nan")), "beta must lie in"),
        (lambda: SystemPrompt("  "), "text is empty"),
        (lambda: Canned(" "), "text is empty"),
        (lambda: FramedPrompt(), "nothing is added"),
        (lambda: SoftHead(NONE, 0.5, 0.5), "needs 0 <= low < high <= 1"),
        (lambda: EarlyHead(NONE, tokens=0), "tokens must lie in"),
        (lambda: SparseHead.of(rand(V, D)).check(D, V + 1), "made for"),
        (lambda: Adapter({"a": (rand(2, D), rand(V, 3))}), "do not fit"),
        (lambda: Weights.of({"a": torch.zeros(2)}), "0 everywhere"),
        (lambda: Steering((1,), rand(1, D), where="here"), "where must be one of"),  # type: ignore[arg-type]
        (lambda: Steering((1,), rand(2, D)), "1 layers but vectors"),
        (
            lambda: LowRankHead(rand(2, D), rand(V, 2)).check(D, V + 1),
            r"made for \[V=7, d=5\], but the model has \[V=8, d=5\]",
        ),
        (lambda: FullHead(rand(V, D), rand(V)).check(D + 1, V), "made for"),
        (
            lambda: actuator_from_state({"kind": "laser"}, {}),
            "unknown actuator 'laser'; known: adapter, canned",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_fields_that_are_missing_or_too_many_are_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="'low_rank_head': tensor 'up' is missing"):
        actuator_from_state({"kind": "low_rank_head"}, {"down": rand(2, D)})
    with pytest.raises(ArtifactError, match="'none': unknown field 'more'"):
        actuator_from_state({"kind": "none", "more": 1}, {})


def names(wanted: Callable[[Actuator], object]) -> set[str]:
    """Kinds of the examples that answer yes."""
    return {actuator.kind for actuator in EXAMPLES if wanted(actuator)}


def test_every_kind_says_what_it_needs_of_an_engine() -> None:
    heads = {"low_rank_head", "full_head", "sparse_head", "soft_head", "early_head"}
    assert {a.kind for a in EXAMPLES} == set(ACTUATORS)
    assert names(lambda a: a.head is not None) == names(lambda a: a.place == "logits") == heads
    assert names(lambda a: a.head is a) == heads
    assert names(lambda a: a.fixed_reply) == {"canned"}
    assert names(lambda a: a.place == "prompt") == {"system_prompt", "framed_prompt"}
    assert names(lambda a: a.edit((Message("user", "x"),)) != (Message("user", "x"),)) == {
        "system_prompt",
        "framed_prompt",
    }
    assert names(lambda a: not a.uniform) == {"canned", "soft_head", "early_head"}
    assert names(lambda a: a.not_in_vllm is None) == {
        "none",
        "low_rank_head",
        "full_head",
        "sparse_head",
    }
    assert names(lambda a: a.per_row) == {"steering", "adapter"}


def test_steering_that_is_two_sided_or_only_in_the_reply_is_not_uniform() -> None:
    vectors = rand(1, D)
    for uneven in (Steering((1,), vectors, where="reply"), Steering((1,), vectors, relief=-1.0)):
        assert not uneven.uniform
    assert Steering((1,), vectors).uniform


def test_the_strength_is_the_one_asked_for_or_the_actions_own_or_that_of_its_relief() -> None:
    steering = Steering((1,), rand(1, D), 2.5, relief=-1.0)
    asked = [steering.strength_on(fired, given) for fired in (True, False) for given in (None, 4.0)]
    assert asked == [2.5, 4.0, -1.0, -1.0]
    assert [NoAction().strength_on(True, given) for given in (None, 4.0)] == [1.0, 4.0]


def test_a_heads_difference_is_what_it_adds_to_the_base_matrix() -> None:
    base = rand(V, D)
    low, full = LowRankHead(rand(2, D), rand(V, 2), 0.5), FullHead(rand(V, D), torch.zeros(V), 0.5)
    for head in (low, full):
        torch.testing.assert_close(
            head.apply(HIDDEN @ base.T, HIDDEN), HIDDEN @ (base + head.difference(base)).T
        )
    torch.testing.assert_close(low.apply(LOGITS, HIDDEN), LOGITS + low.addition(HIDDEN))
    assert full.addition(HIDDEN) is None
    with pytest.raises(SettingError, match="soft_head"):
        SoftHead(low).difference(base)
