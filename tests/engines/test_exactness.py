"""A left-padded batch under any mix of flags gives, token for token, what each row gives alone the
slow way."""

from __future__ import annotations

import pytest
import torch

from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Steering
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.engines.slow import (
    Projection,
    pilot_point,
    prompt_point,
    random_head,
    reply_alone,
    states_alone,
)
from tests.tiny import NAMES, tiny_lm

PROMPTS = [
    "a",
    "tell me a story",
    "xyz",
    "how to tie a knot in a rope",
    "count to ten now",
    "q?",
    "once upon a time",
]
K, NEW = 3, 12


def snapshot(lm: LanguageModel) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Every weight and every hook (``output_hidden_states`` of transformers leaves hooks of its own
    behind)."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}, hooks


def assert_untouched(lm: LanguageModel, before: tuple[dict[str, torch.Tensor], list[int]]) -> None:
    weights, hooks = snapshot(lm)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before[0].items())
    assert hooks == before[1]


def two_stage(lm: LanguageModel, layer: int = -1) -> tuple[Switch, list[bool]]:
    """A switch with medians as thresholds, so that about a quarter of the rows fire, and which rows
    those are by hand."""
    first = Projection(
        prompt_point(lm, layer), lm.model.config.get_text_config().hidden_size, seed=1
    )
    second = Projection(
        pilot_point(lm, K, layer), lm.model.config.get_text_config().hidden_size, seed=2
    )
    ids = lm.encode(PROMPTS)
    at = lm.layer(layer)
    s1, s2 = [], []
    for row in ids:
        states = states_alone(lm, row)[at][-1]
        pilot = reply_alone(lm, row, K)
        later = states_alone(lm, row + pilot)[at][-1]
        s1.append(float(torch.sigmoid(states @ first.direction)))
        s2.append(float(torch.sigmoid(later @ second.direction)))
    t1 = sorted(s1)[1] + 1e-4
    t2 = sorted(b for a, b in zip(s1, s2, strict=True) if a > t1)[1] + 1e-4
    fired = [a > t1 and b > t2 for a, b in zip(s1, s2, strict=True)]
    gate = Gate(stage1=Stage(first, t1), stage2=Stage(second, t2))
    return Switch(gate, random_head(lm)), fired


@pytest.mark.parametrize("name", NAMES)
def test_with_no_row_flagged_the_engine_equals_plain_generate(name: str) -> None:
    lm = tiny_lm(name)
    never = Projection(prompt_point(lm), lm.hidden_size)
    switch = Switch(Gate(stage1=Stage(never, 1.0)), random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=NEW, do_sample=False)
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        plain = lm.model.generate(
            torch.tensor([row]),
            attention_mask=torch.ones(1, len(row)),
            max_new_tokens=NEW,
            do_sample=False,
        )
        assert list(reply.token_ids) == plain[0, len(row) :].tolist()
        assert not reply.decision.fired


@pytest.mark.parametrize("name", NAMES)
def test_mixed_flags_in_one_padded_batch_equal_each_row_alone(name: str) -> None:
    lm = tiny_lm(name)
    switch, expected = two_stage(lm)
    assert 0 < sum(expected) < len(expected)
    before = snapshot(lm)
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=NEW, do_sample=False)
    for row, fired, reply in zip(lm.encode(PROMPTS), expected, replies, strict=True):
        assert reply.decision.fired == fired
        assert list(reply.token_ids) == reply_alone(
            lm, row, NEW, switch.actuator if fired else None
        )
    assert_untouched(lm, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, len(PROMPTS)], ids=["one row fired", "all rows fired"])
def test_a_batch_of_which_one_row_or_every_row_fires_equals_each_row_alone(
    name: str, count: int
) -> None:
    lm = tiny_lm(name)
    second = Projection(pilot_point(lm, K), lm.hidden_size, seed=2)
    scores = []
    for row in lm.encode(PROMPTS):
        later = states_alone(lm, row + reply_alone(lm, row, K))[-1][-1]
        scores.append(float(torch.sigmoid(later @ second.direction)))
    ranked = [0.0, *sorted(scores)]
    bar = 0.0 if count == len(PROMPTS) else (ranked[-count] + ranked[-count - 1]) / 2
    expected = [score > bar for score in scores]
    assert sum(expected) == count
    switch = Switch(Gate(stage2=Stage(second, bar)), random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=NEW, do_sample=False)
    for row, fired, reply in zip(lm.encode(PROMPTS), expected, replies, strict=True):
        assert reply.decision.fired == fired
        assert list(reply.token_ids) == reply_alone(
            lm, row, NEW, random_head(lm) if fired else None
        )


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mamba"])
def test_stage_one_alone_switches_from_the_first_token(name: str) -> None:
    lm = tiny_lm(name)
    two, _ = two_stage(lm)
    switch = Switch(Gate(stage1=two.gate.stage1), two.actuator)
    replies = TransformersEngine(lm, batch_size=3).generate(
        PROMPTS, switch, max_new_tokens=NEW, do_sample=False
    )
    assert 0 < sum(r.decision.fired for r in replies) < len(replies)
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        head = switch.actuator if reply.decision.fired else None
        assert list(reply.token_ids) == reply_alone(lm, row, NEW, head)
        assert reply.decision.token_index == 0


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "falcon_h1"])
def test_an_inner_layer_is_read_like_the_last(name: str) -> None:
    lm = tiny_lm(name)
    switch, expected = two_stage(lm, layer=1)
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=NEW, do_sample=False)
    assert [r.decision.fired for r in replies] == expected


def test_a_sliding_window_outgrown_by_the_reply_is_run_again_and_stays_exact() -> None:
    lm = tiny_lm("mistral_sliding")
    assert lm.traits.window == 16
    switch, expected = two_stage(lm)
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=30, do_sample=False)
    for row, fired, reply in zip(lm.encode(PROMPTS), expected, replies, strict=True):
        assert list(reply.token_ids) == reply_alone(lm, row, 30, switch.actuator if fired else None)


def exploding(kind: str, lm: LanguageModel) -> Switch:
    vectors = torch.ones(2, lm.hidden_size)
    return {
        "top layer": lambda: two_stage(lm)[0],
        "inner layer": lambda: two_stage(lm, layer=1)[0],
        "steering": lambda: Switch(Gate(always=True), Steering((1, 2), vectors)),
        "gated steering": lambda: Switch(
            Gate(stage1=Stage(Projection(prompt_point(lm, 1), lm.hidden_size), 0.0)),
            Steering((1, 2), vectors),
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["top layer", "inner layer", "steering", "gated steering"])
def test_the_model_is_as_before_after_an_exception_in_the_middle(kind: str) -> None:
    lm = tiny_lm("llama")
    switch = exploding(kind, lm)
    before = snapshot(lm)
    width = max(len(row) for row in lm.encode(PROMPTS))
    hooks_open = {
        "top layer": 1,
        "inner layer": 2,
        "steering": 3,
        "gated steering": 3,
    }  # the head's, and one a layer

    def explode(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == width + 2:
            assert sum(snapshot(lm)[1]) - sum(before[1]) == hooks_open[kind]
            raise RuntimeError("half way")
        return scores

    with pytest.raises(RuntimeError, match="half way"):
        TransformersEngine(lm).generate(
            PROMPTS, switch, max_new_tokens=NEW, logits_processor=[explode]
        )
    assert_untouched(lm, before)
