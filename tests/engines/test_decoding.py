"""Every decoding option means the same on both sides of the switch, and the same as in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safeswitch.core.errors import ContextLengthError, DataError, FingerprintError, SettingError
from safeswitch.core.types import Message
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators import FullHead, LowRankHead, NoAction, Steering, SystemPrompt
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import BaseModel, Switch
from tests.engines.slow import Projection, pilot_point, prompt_point, random_head, reply_alone
from tests.engines.test_exactness import PROMPTS, two_stage
from tests.tiny import tiny_lm

OPTIONS: list[dict[str, Any]] = [
    {"do_sample": False, "repetition_penalty": 1.7},
    {"do_sample": True, "temperature": 1.3, "top_p": 0.9},
    {"do_sample": True, "top_k": 7},
    {"do_sample": False, "no_repeat_ngram_size": 2},
    {"do_sample": False, "min_new_tokens": 8, "eos_token_id": list(range(40, 140))},
    {"do_sample": False, "stop_strings": ["e", "t"]},
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm("llama")


def always(switch: Switch) -> Switch:
    return Switch(Gate(always=True), switch.actuator)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_mixed_batch_equals_each_row_alone_under_every_option(lm: LanguageModel, options: dict[str, Any]) -> None:
    switch, _ = two_stage(lm)
    engine = TransformersEngine(lm)
    seeds = list(range(100, 100 + len(PROMPTS)))
    together = engine.generate(PROMPTS, switch, max_new_tokens=15, seed=seeds, **options)
    if not options["do_sample"]:
        assert [r.decision.fired for r in together] != [False] * len(PROMPTS)
    for prompt, seed, reply in zip(PROMPTS, seeds, together, strict=True):
        alone = always(switch) if reply.decision.fired else None
        expected_reply = engine.generate([prompt], alone, max_new_tokens=15, seed=seed, **options)[0]
        assert reply.token_ids == expected_reply.token_ids
        assert reply.finish_reason == expected_reply.finish_reason


def test_sampling_one_row_draws_what_transformers_draws_after_the_same_seed(lm: LanguageModel) -> None:
    ids = torch.tensor(lm.encode(["a story"]))
    for seed in range(3):
        torch.manual_seed(seed)
        options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.2}
        plain = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        ours = TransformersEngine(lm).generate(["a story"], seed=seed, **options)
        assert list(ours[0].token_ids) == plain[0, ids.shape[1] :].tolist()


def test_a_row_samples_the_same_tokens_whatever_the_batch(lm: LanguageModel) -> None:
    engine = TransformersEngine(lm)
    seeds = list(range(len(PROMPTS)))
    one = engine.generate(PROMPTS, max_new_tokens=9, do_sample=True, seed=seeds)
    two = TransformersEngine(lm, batch_size=2).generate(PROMPTS[::-1], max_new_tokens=9, do_sample=True, seed=seeds[::-1])
    assert [r.token_ids for r in one] == [r.token_ids for r in two[::-1]]


def test_a_reply_that_ends_before_stage_two_is_still_judged(lm: LanguageModel) -> None:
    second = Projection(pilot_point(lm, 6), lm.hidden_size, seed=3)
    switch = Switch(Gate(stage2=Stage(second, 0.0)), random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=2, do_sample=False)
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        assert reply.decision.fired
        assert reply.decision.stage == "stage2"
        assert list(reply.token_ids) == reply_alone(lm, row, 2, switch.actuator)


def test_the_product_rule_multiplies_the_two_scores(lm: LanguageModel) -> None:
    switch, _ = two_stage(lm)
    seen = TransformersEngine(lm).generate(
        PROMPTS, Switch(Gate(stage1=switch.gate.stage1, stage2=switch.gate.stage2, rule="product", product_threshold=0.0),
                        NoAction()), max_new_tokens=6, do_sample=False,
    )
    products = [r.decision.scores["stage1"] * r.decision.scores["stage2"] for r in seen]
    bar = sum(sorted(products)[3:5]) / 2
    gate = Gate(stage1=switch.gate.stage1, stage2=switch.gate.stage2, rule="product", product_threshold=bar)
    replies = TransformersEngine(lm).generate(PROMPTS, Switch(gate, switch.actuator), max_new_tokens=6, do_sample=False)
    assert [r.decision.fired for r in replies] == [p > bar for p in products]


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_a_prober_that_cannot_run_fires_when_failing_closed_and_not_when_open(lm: LanguageModel, fail: str) -> None:
    class Broken(Projection):
        def score(self, acts: Any) -> torch.Tensor:
            raise RuntimeError("no such luck")

    gate = Gate(stage1=Stage(Broken(prompt_point(lm), lm.hidden_size), 0.5), fail=fail)  # type: ignore[arg-type]
    for reply in TransformersEngine(lm).generate(PROMPTS, Switch(gate, random_head(lm)), max_new_tokens=4, do_sample=False):
        assert reply.decision.fired == (fail == "closed")
        assert reply.decision.stage == "error"
        assert "no such luck" in (reply.decision.error or "")


@pytest.mark.parametrize("name", ["llama", "falcon_h1"])
def test_nan_in_one_row_decides_that_row_alone(name: str) -> None:
    lm = tiny_lm(name)

    class Sick(Projection):
        def score(self, acts: Any) -> torch.Tensor:
            scores = super().score(acts)
            return torch.where(torch.tensor(["story" in text for text in acts.texts]), float("nan"), 0 * scores)

    gate = Gate(stage1=Stage(Sick(prompt_point(lm), lm.hidden_size), 0.5))
    replies = TransformersEngine(lm).generate(PROMPTS, Switch(gate, random_head(lm)), max_new_tokens=4, do_sample=False)
    assert [r.decision.fired for r in replies] == ["story" in p for p in PROMPTS]


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_beta_interpolates_between_the_two_heads(lm: LanguageModel, beta: float) -> None:
    low = random_head(lm)
    full = FullHead(lm.parts.head.weight.detach() + low.up @ low.down, torch.zeros(lm.vocab_size), beta=beta)
    by_hand = LowRankHead(low.down, beta * low.up)
    engine = TransformersEngine(lm)
    for head in (full, LowRankHead(low.down, low.up, beta=beta)):
        replies = engine.generate(PROMPTS, Switch(Gate(always=True), head), max_new_tokens=8, do_sample=False)
        for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
            assert list(reply.token_ids) == reply_alone(lm, row, 8, by_hand)


def test_the_watch_switches_in_the_middle_of_a_reply_and_starts_it_anew(lm: LanguageModel) -> None:
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    switch = Switch(Gate(watch=Stage(watch, 0.5), watch_every=4), random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=11, do_sample=False)
    assert sum(r.decision.fired for r in replies) > 0
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        assert list(reply.token_ids) == reply_alone(lm, row, 11, switch.actuator if reply.decision.fired else None)
        if reply.decision.fired:
            assert reply.decision.stage == "watch"
            assert reply.decision.token_index % 4 == 0 or reply.decision.token_index == 11


def test_a_gated_system_prompt_answers_flagged_requests_as_if_it_had_been_there(lm: LanguageModel) -> None:
    switch, expected = two_stage(lm)
    edit = SystemPrompt("be careful")
    engine = TransformersEngine(lm)
    replies = engine.generate(PROMPTS, Switch(switch.gate, edit), max_new_tokens=8, do_sample=False)
    assert [r.decision.fired for r in replies] == expected
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        turns = [Message("user", prompt)]
        asked = edit.edit(tuple(turns)) if reply.decision.fired else turns
        assert reply.token_ids == engine.generate([asked], max_new_tokens=8, do_sample=False)[0].token_ids


def test_steering_adds_the_vector_to_the_block_and_leaves_no_trace(lm: LanguageModel) -> None:
    vector = torch.randn(1, lm.hidden_size, generator=torch.Generator().manual_seed(3))
    steering = Switch(Gate(always=True), Steering((2,), vector, strength=0.7))
    plain = TransformersEngine(lm).generate(PROMPTS, max_new_tokens=6, do_sample=False)
    steered = TransformersEngine(lm).generate(PROMPTS, steering, max_new_tokens=6, do_sample=False)
    handle = lm.parts.blocks[1].register_forward_hook(lambda m, a, o: o + 0.7 * vector[0])
    try:
        by_hand = [reply_alone(lm, row, 6) for row in lm.encode(PROMPTS)]
    finally:
        handle.remove()
    assert [list(r.token_ids) for r in steered] == by_hand
    again = TransformersEngine(lm).generate(PROMPTS, max_new_tokens=6, do_sample=False)
    assert [r.token_ids for r in again] == [r.token_ids for r in plain] != [r.token_ids for r in steered]


def test_several_switches_live_on_one_model(lm: LanguageModel) -> None:
    engine = TransformersEngine(lm)
    one, two = (Switch(Gate(always=True), random_head(lm, seed=s)) for s in (1, 2))
    first = engine.generate(PROMPTS, one, max_new_tokens=5, do_sample=False)
    engine.generate(PROMPTS, two, max_new_tokens=5, do_sample=False)
    assert [r.token_ids for r in engine.generate(PROMPTS, one, max_new_tokens=5, do_sample=False)] == [
        r.token_ids for r in first
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "num_beams"), ({"max_new_tokens": 0}, "max_new_tokens"), ({"guidance_scale": 2.0}, "guidance"),
        ({"cache_implementation": "static"}, "cache"), ({"no_such_option": 1}, "no_such_option"), ({"seed": [1]}, "seeds"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(
    lm: LanguageModel, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingError, match=named):
        TransformersEngine(lm).generate(["a", "b"], **options)


def test_bad_prompts_are_refused_before_anything_runs(lm: LanguageModel) -> None:
    engine = TransformersEngine(lm)
    with pytest.raises(DataError, match="empty"):
        engine.generate(["fine", "  "])
    with pytest.raises(ContextLengthError, match="takes 512"):
        engine.generate(["x" * 600], max_new_tokens=5)
    assert engine.generate([]) == []


def test_a_switch_of_another_model_is_refused_with_both_fingerprints(lm: LanguageModel) -> None:
    other = tiny_lm("llama", seed=7)
    switch = Switch(Gate(always=True), random_head(lm), BaseModel.of(other))
    with pytest.raises(FingerprintError, match=other.fingerprint) as caught:
        TransformersEngine(lm).generate(["a"], switch)
    assert lm.fingerprint in str(caught.value)
    TransformersEngine(lm, allow_other_model=True).generate(["a"], switch, max_new_tokens=1)


def test_a_head_of_another_width_is_refused(lm: LanguageModel) -> None:
    switch = Switch(Gate(always=True), LowRankHead(torch.zeros(1, 7), torch.zeros(lm.vocab_size, 1)))
    with pytest.raises(SettingError, match="d=7"):
        TransformersEngine(lm).generate(["a"], switch)
