"""Every decoding option means the same on both sides of the switch, and the same as in
transformers."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, SynthIDTextWatermarkingConfig

from safeswitch.activations.record import record
from safeswitch.core.errors import (
    ContextLengthError,
    DataError,
    FingerprintError,
    ModelError,
    SettingError,
)
from safeswitch.core.types import Message
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.rows import Rows
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import FullHead, LowRankHead, NoAction, Steering, SystemPrompt
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import BaseModel, Switch
from tests.engines.slow import (
    Projection,
    pilot_point,
    prompt_point,
    random_head,
    reply_alone,
    states_alone,
)
from tests.engines.test_exactness import PROMPTS, two_stage
from tests.models.test_traits import tiny_minicpm3
from tests.tiny import tiny_lm, tiny_tokenizer

OPTIONS: list[dict[str, Any]] = [
    {"do_sample": False, "repetition_penalty": 1.7},
    {"do_sample": True, "temperature": 1.3, "top_p": 0.9},
    {"do_sample": True, "top_k": 7},
    {"do_sample": False, "no_repeat_ngram_size": 2},
    {"do_sample": False, "min_new_tokens": 8, "eos_token_id": list(range(40, 140))},
    {"do_sample": False, "stop_strings": ["e", "t"]},
]

ENDLESS: dict[str, Any] = {"do_sample": False, "eos_token_id": -1}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm("llama")


def always(switch: Switch) -> Switch:
    return Switch(Gate(always=True), switch.actuator)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_mixed_batch_equals_each_row_alone_under_every_option(
    lm: LanguageModel, options: dict[str, Any]
) -> None:
    switch, _ = two_stage(lm)
    engine = TransformersEngine(lm)
    seeds = list(range(100, 100 + len(PROMPTS)))
    together = engine.generate(PROMPTS, switch, max_new_tokens=15, seed=seeds, **options)
    if not options["do_sample"]:
        assert [r.decision.fired for r in together] != [False] * len(PROMPTS)
    for prompt, seed, reply in zip(PROMPTS, seeds, together, strict=True):
        alone = always(switch) if reply.decision.fired else None
        expected_reply = engine.generate([prompt], alone, max_new_tokens=15, seed=seed, **options)[
            0
        ]
        assert reply.token_ids == expected_reply.token_ids
        assert reply.finish_reason == expected_reply.finish_reason


def test_sampling_one_row_draws_what_transformers_draws_after_the_same_seed(
    lm: LanguageModel,
) -> None:
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
    two = TransformersEngine(lm, batch_size=2).generate(
        PROMPTS[::-1], max_new_tokens=9, do_sample=True, seed=seeds[::-1]
    )
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
        PROMPTS,
        Switch(
            Gate(
                stage1=switch.gate.stage1,
                stage2=switch.gate.stage2,
                rule="product",
                product_threshold=0.0,
            ),
            NoAction(),
        ),
        max_new_tokens=6,
        do_sample=False,
    )
    products = [r.decision.scores["stage1"] * r.decision.scores["stage2"] for r in seen]
    bar = sum(sorted(products)[3:5]) / 2
    gate = Gate(
        stage1=switch.gate.stage1, stage2=switch.gate.stage2, rule="product", product_threshold=bar
    )
    replies = TransformersEngine(lm).generate(
        PROMPTS, Switch(gate, switch.actuator), max_new_tokens=6, do_sample=False
    )
    assert [r.decision.fired for r in replies] == [p > bar for p in products]


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_a_prober_that_cannot_run_fires_when_failing_closed_and_not_when_open(
    lm: LanguageModel, fail: str
) -> None:
    class Broken(Projection):
        def score(self, activations: Any) -> torch.Tensor:
            raise RuntimeError("no such luck")

    gate = Gate(stage1=Stage(Broken(prompt_point(lm), lm.hidden_size), 0.5), fail=fail)  # type: ignore[arg-type]
    for reply in TransformersEngine(lm).generate(
        PROMPTS, Switch(gate, random_head(lm)), max_new_tokens=4, do_sample=False
    ):
        assert reply.decision.fired == (fail == "closed")
        assert reply.decision.stage == "error"
        assert "no such luck" in (reply.decision.error or "")


@pytest.mark.parametrize("name", ["llama", "falcon_h1"])
def test_nan_in_one_row_decides_that_row_alone(name: str) -> None:
    lm = tiny_lm(name)

    class Sick(Projection):
        def score(self, activations: Any) -> torch.Tensor:
            scores = super().score(activations)
            return torch.where(
                torch.tensor(["story" in text for text in activations.texts]),
                float("nan"),
                0 * scores,
            )

    gate = Gate(stage1=Stage(Sick(prompt_point(lm), lm.hidden_size), 0.5))
    replies = TransformersEngine(lm).generate(
        PROMPTS, Switch(gate, random_head(lm)), max_new_tokens=4, do_sample=False
    )
    assert [r.decision.fired for r in replies] == ["story" in p for p in PROMPTS]


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_beta_interpolates_between_the_two_heads(lm: LanguageModel, beta: float) -> None:
    low = random_head(lm)
    full = FullHead(
        lm.parts.head.weight.detach() + low.up @ low.down, torch.zeros(lm.vocab_size), beta=beta
    )
    by_hand = LowRankHead(low.down, beta * low.up)
    engine = TransformersEngine(lm)
    for head in (full, LowRankHead(low.down, low.up, beta=beta)):
        replies = engine.generate(
            PROMPTS, Switch(Gate(always=True), head), max_new_tokens=8, do_sample=False
        )
        for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
            assert list(reply.token_ids) == reply_alone(lm, row, 8, by_hand)


def test_the_watch_switches_in_the_middle_of_a_reply_and_starts_it_anew(lm: LanguageModel) -> None:
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    switch = Switch(Gate(watch=Stage(watch, 0.5), watch_every=4), random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=11, do_sample=False)
    assert sum(r.decision.fired for r in replies) > 0
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        assert list(reply.token_ids) == reply_alone(
            lm, row, 11, switch.actuator if reply.decision.fired else None
        )
        if reply.decision.fired:
            assert reply.decision.stage == "watch"
            assert reply.decision.token_index % 4 == 0 or reply.decision.token_index == 11


def test_a_gated_system_prompt_answers_flagged_requests_as_if_it_had_been_there(
    lm: LanguageModel,
) -> None:
    switch, expected = two_stage(lm)
    edit = SystemPrompt("be careful")
    engine = TransformersEngine(lm)
    replies = engine.generate(PROMPTS, Switch(switch.gate, edit), max_new_tokens=8, do_sample=False)
    assert [r.decision.fired for r in replies] == expected
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        turns = [Message("user", prompt)]
        asked = edit.edit(tuple(turns)) if reply.decision.fired else turns
        assert (
            reply.token_ids
            == engine.generate([asked], max_new_tokens=8, do_sample=False)[0].token_ids
        )


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
    assert (
        [r.token_ids for r in again]
        == [r.token_ids for r in plain]
        != [r.token_ids for r in steered]
    )


def test_several_switches_live_on_one_model(lm: LanguageModel) -> None:
    engine = TransformersEngine(lm)
    one, two = (Switch(Gate(always=True), random_head(lm, seed=s)) for s in (1, 2))
    first = engine.generate(PROMPTS, one, max_new_tokens=5, do_sample=False)
    engine.generate(PROMPTS, two, max_new_tokens=5, do_sample=False)
    assert [
        r.token_ids for r in engine.generate(PROMPTS, one, max_new_tokens=5, do_sample=False)
    ] == [r.token_ids for r in first]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"guidance_scale": 2.0}, "guidance"),
        ({"cache_implementation": "static"}, "cache"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"seed": [1]}, "seeds"),
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
    switch = Switch(
        Gate(always=True), LowRankHead(torch.zeros(1, 7), torch.zeros(lm.vocab_size, 1))
    )
    with pytest.raises(SettingError, match="d=7"):
        TransformersEngine(lm).generate(["a"], switch)


def own_config(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Give the model's own generation config other settings, for one test."""
    config = copy.deepcopy(lm.model.generation_config)
    for name, value in settings.items():
        setattr(config, name, value)
    monkeypatch.setattr(lm.model, "generation_config", config)


@pytest.mark.parametrize(
    ("where", "setting"),
    [
        ("generation_config", "use_cache"),
        ("config", "use_cache"),
        ("generation_config", "cache_implementation"),
    ],
)
def test_a_model_saved_with_another_cache_or_none_replies_as_by_hand(
    where: str, setting: str
) -> None:
    lm = tiny_lm("llama")
    for value in (False,) if setting == "use_cache" else ("static", "hybrid"):
        setattr(getattr(lm.model, where), setting, value)
        switch, expected = two_stage(lm)
        replies = TransformersEngine(lm).generate(
            PROMPTS, switch, max_new_tokens=6, do_sample=False
        )
        for row, fired, reply in zip(lm.encode(PROMPTS), expected, replies, strict=True):
            assert list(reply.token_ids) == reply_alone(
                lm, row, 6, switch.actuator if fired else None
            )  # type: ignore[arg-type]


def test_outputs_that_the_model_itself_asks_for_are_switched_off(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_config(
        lm, monkeypatch, return_dict_in_generate=True, output_scores=True, output_hidden_states=True
    )
    reply = TransformersEngine(lm).generate(["a story"], max_new_tokens=6, do_sample=False)[0]
    assert list(reply.token_ids) == reply_alone(lm, lm.encode(["a story"])[0], 6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_beams", 4), ("penalty_alpha", 0.6), ("dola_layers", "high"), ("stop_strings", ["x"])],
)
def test_what_is_refused_of_the_models_own_config_is_said_to_come_from_there(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, setting: str, value: Any
) -> None:
    own_config(lm, monkeypatch, **{setting: value})
    with pytest.raises(
        SettingError, match=rf"{setting}=.* in the model's generation config is not supported"
    ):
        TransformersEngine(lm).generate(["a"])


def test_the_caller_overrides_what_would_be_refused_of_the_models_own_config(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_config(lm, monkeypatch, num_beams=4)
    reply = TransformersEngine(lm).generate(
        ["a story"], max_new_tokens=6, num_beams=1, do_sample=False
    )[0]
    assert list(reply.token_ids) == reply_alone(lm, lm.encode(["a story"])[0], 6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"use_cache": False}, "use_cache=False"),
        ({"assistant_early_exit": 2}, "assistant_early_exit=2"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        (
            {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=2, keys=[1, 2])},
            "SynthID.* keeps a state",
        ),
    ],
)
def test_options_in_a_generation_config_are_refused_like_keywords(
    lm: LanguageModel, options: dict[str, Any], named: str
) -> None:
    for given in (options, {"generation_config": GenerationConfig(**options)}):
        with pytest.raises(SettingError, match=named) as caught:
            TransformersEngine(lm).generate(["a"], **given)
        assert "the model's generation config" not in str(caught.value)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_a_cache_of_the_caller_is_refused_under_every_name(lm: LanguageModel, name: str) -> None:
    with pytest.raises(SettingError, match=f"{name}=.*the engine owns the cache"):
        TransformersEngine(lm).generate(["a"], **{name: DynamicCache()})


def test_a_generation_config_and_keywords_count_together_without_a_warning(
    lm: LanguageModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GenerationConfig(
        repetition_penalty=1.7, eos_token_id=list(range(40, 140)), temperature=None
    )
    before = config.to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    engine = TransformersEngine(lm)
    both = engine.generate(
        PROMPTS, max_new_tokens=9, generation_config=config, no_repeat_ngram_size=2
    )
    keywords = {
        "repetition_penalty": 1.7,
        "eos_token_id": list(range(40, 140)),
        "no_repeat_ngram_size": 2,
    }
    one = engine.generate(PROMPTS, max_new_tokens=9, do_sample=False, **keywords)
    assert [r.token_ids for r in both] == [r.token_ids for r in one]
    assert [r.finish_reason for r in both] == [
        "stop" if r.token_ids[-1] in range(40, 140) else "length" for r in one
    ]
    assert config.to_dict() == before
    assert not [record for record in caplog.records if "generation_config" in record.getMessage()]


def test_a_reply_that_ends_with_its_last_token_on_an_end_token_of_the_config_has_not_been_cut(
    lm: LanguageModel,
) -> None:
    first = (
        TransformersEngine(lm)
        .generate(["a story"], max_new_tokens=1, do_sample=False)[0]
        .token_ids[0]
    )
    config = GenerationConfig(eos_token_id=first)
    reply = TransformersEngine(lm).generate(
        ["a story"], max_new_tokens=1, generation_config=config
    )[0]
    assert reply.finish_reason == "stop"


def test_stop_strings_may_come_in_a_generation_config(lm: LanguageModel) -> None:
    engine = TransformersEngine(lm)
    config = GenerationConfig(stop_strings=["e", "t"])
    replies = engine.generate(PROMPTS, max_new_tokens=15, generation_config=config)
    expected = engine.generate(PROMPTS, max_new_tokens=15, do_sample=False, stop_strings=["e", "t"])
    assert [r.token_ids for r in replies] == [r.token_ids for r in expected]


def test_a_seed_may_be_any_whole_number(lm: LanguageModel) -> None:
    engine = TransformersEngine(lm)
    drawn = [
        engine.generate(PROMPTS, max_new_tokens=5, do_sample=True, seed=s)
        for s in (3, np.int64(3), np.arange(3, 10))
    ]
    assert len({tuple(r.token_ids for r in replies) for replies in drawn}) == 1


def test_a_prompt_that_no_longer_fits_with_the_system_text_is_named_before_anything_runs(
    lm: LanguageModel,
) -> None:
    switch, _ = two_stage(lm)
    edit = Switch(switch.gate, SystemPrompt("s" * 60))
    seen: list[int] = []
    with pytest.raises(ContextLengthError, match=r"SystemPrompt in front, prompt 5 has \d+ tokens"):
        TransformersEngine(lm, batch_size=1).generate(
            [*PROMPTS[:5], "x" * 450], edit, max_new_tokens=8, progress=seen.append
        )
    assert seen == []


@pytest.mark.parametrize("until", [None, 4])
def test_a_reply_that_ends_inside_the_pilot_is_watched_when_stage_two_clears_it(
    lm: LanguageModel, until: int | None
) -> None:
    cleared = Stage(Projection(pilot_point(lm, 6, 1), lm.hidden_size, seed=3), 1.0)
    watch = Projection(pilot_point(lm, 4, 2), lm.hidden_size, seed=9)
    scores = []
    for row in lm.encode(PROMPTS):
        states = states_alone(lm, row + reply_alone(lm, row, 2))[2][-1]
        scores.append(float(torch.sigmoid(states @ watch.direction)))
    bar = sum(sorted(scores)[3:5]) / 2
    switch = Switch(
        Gate(stage2=cleared, watch=Stage(watch, bar), watch_every=4, watch_until=until),
        random_head(lm),
    )
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=2, do_sample=False)
    for row, score, reply in zip(lm.encode(PROMPTS), scores, replies, strict=True):
        assert reply.decision.scores["watch"] == pytest.approx(score, abs=1e-4)
        assert reply.decision.fired == (score > bar)
        assert list(reply.token_ids) == reply_alone(
            lm, row, 2, switch.actuator if score > bar else None
        )  # type: ignore[arg-type]


def test_an_always_on_gate_reports_no_score_of_a_prober_that_was_not_asked(
    lm: LanguageModel,
) -> None:
    first = Stage(Projection(prompt_point(lm), lm.hidden_size), 0.5)
    switch = Switch(Gate(stage1=first, always=True), random_head(lm))
    reply = TransformersEngine(lm).generate(["a"], switch, max_new_tokens=2)[0]
    assert (reply.decision.stage, reply.decision.scores) == ("always", {})


def test_time_spent_on_two_readings_in_one_step_is_counted_once(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("safeswitch.engines.transformers.rows.time.perf_counter", lambda: clock[0])

    class Slow(Projection):
        seconds = 0.0

        def score(self, activations: Any) -> torch.Tensor:
            clock[0] += self.seconds
            return torch.full((len(activations),), 0.5)

    def stage(point: Any, seconds: float, bar: float) -> Stage:
        prober = Slow(point, lm.hidden_size)
        prober.seconds = seconds
        return Stage(prober, bar)

    direct = Gate(stage1=stage(prompt_point(lm), 1, 0.0), stage2=stage(prompt_point(lm), 10, 0.9))
    late = Gate(
        stage2=stage(pilot_point(lm, 4), 100, 0.9),
        watch=stage(pilot_point(lm, 4), 1000, 0.9),
        watch_every=4,
    )
    for gate, seconds in ((direct, 11), (late, 1100)):
        reply = TransformersEngine(lm).generate(
            ["a"], Switch(gate, NoAction()), max_new_tokens=4, **ENDLESS
        )
        assert reply[0].decision.latency_s == seconds


def test_steering_takes_the_blocks_output_as_it_is_whatever_its_weights_are(
    lm: LanguageModel,
) -> None:
    vector = torch.randn(1, lm.hidden_size, generator=torch.Generator().manual_seed(3))
    steering = Switch(Gate(always=True), Steering((2,), vector, strength=0.7))
    expected = TransformersEngine(lm).generate(PROMPTS, steering, max_new_tokens=6, do_sample=False)
    rounded = tiny_lm("llama")
    rounded.parts.blocks[1].codes = torch.nn.Parameter(
        torch.zeros(1, dtype=torch.int8), requires_grad=False
    )
    assert next(rounded.parts.blocks[1].parameters()).dtype == torch.int8
    found = TransformersEngine(rounded).generate(
        PROMPTS, steering, max_new_tokens=6, do_sample=False
    )
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]


def test_once_everything_is_decided_no_state_is_read_any_more(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    real = Rows._keep

    def keep(rows: Rows, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        kept.append(layer)
        return real(rows, layer, hidden)

    monkeypatch.setattr(Rows, "_keep", keep)
    stage1, stage2 = (
        Stage(Projection(point, lm.hidden_size), 0.0)
        for point in (prompt_point(lm, 1), pilot_point(lm, 3, 2))
    )
    watch = Stage(Projection(pilot_point(lm, 2, 1), lm.hidden_size), 1.0)
    cleared = Stage(stage2.prober, 1.0)
    cases = [
        (Gate(stage1=Stage(stage1.prober, 1.0)), 1),
        (Gate(stage1=stage1, stage2=cleared), 2 * (1 + 3)),
        (Gate(watch=watch, watch_every=2, watch_until=4), 1 + 4 + 1),
    ]
    for gate, count in cases:
        kept.clear()
        TransformersEngine(lm).generate(
            ["a"], Switch(gate, random_head(lm)), max_new_tokens=12, **ENDLESS
        )
        assert len(kept) == count


def test_a_processor_that_writes_into_its_logits_changes_a_mixed_batch_as_it_changes_each_row_alone(
    lm: LanguageModel,
) -> None:
    switch, _ = two_stage(lm)

    def push(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.add_(torch.linspace(0, 3, scores.shape[1]))

    engine = TransformersEngine(lm)
    together = engine.generate(
        PROMPTS, switch, max_new_tokens=9, do_sample=False, logits_processor=[push]
    )
    assert 0 < sum(r.decision.fired for r in together) < len(together)
    for prompt, reply in zip(PROMPTS, together, strict=True):
        acting = always(switch) if reply.decision.fired else None
        alone = engine.generate(
            [prompt], acting, max_new_tokens=9, do_sample=False, logits_processor=[push]
        )
        assert reply.token_ids == alone[0].token_ids


def test_the_top_layer_is_read_alike_in_training_and_at_run_time_where_the_model_scales_before_its_head() -> (
    None
):
    lm = LanguageModel(tiny_minicpm3(), tiny_tokenizer())
    first, second, watch = (prompt_point(lm), pilot_point(lm, 3), pilot_point(lm, 4))
    probers = [
        Projection(point, lm.hidden_size, seed=i) for i, point in enumerate((first, second, watch))
    ]
    gate = Gate(
        stage1=Stage(probers[0], 0.0),
        stage2=Stage(probers[1], 1.0),
        watch=Stage(probers[2], 1.0),
        watch_every=4,
    )
    replies = TransformersEngine(lm).generate(
        PROMPTS, Switch(gate, random_head(lm)), max_new_tokens=4, **ENDLESS
    )
    rows = lm.encode(PROMPTS)
    sequences = [row + list(reply.token_ids) for row, reply in zip(rows, replies, strict=True)]
    activations = record(lm, sequences, [len(row) for row in rows], [first, second, watch])
    for name, prober in zip(("stage1", "stage2", "watch"), probers, strict=True):
        assert [r.decision.scores[name] for r in replies] == pytest.approx(
            prober.score(activations).tolist(), abs=1e-4
        )


def test_the_top_layer_is_refused_where_the_head_is_given_something_else_again() -> None:
    lm = tiny_lm("llama")
    lm.parts.head.register_forward_pre_hook(lambda module, args: (args[0] + 1.0,))
    top, inner = (
        Switch(Gate(stage1=Stage(Projection(prompt_point(lm, i), lm.hidden_size), 0.5)), NoAction())
        for i in (-1, 2)
    )
    with pytest.raises(
        ModelError, match=r"layer 3 \(-1\) of tiny-llama cannot be read .* use layers 0\.\.2"
    ):
        TransformersEngine(lm).generate(["a"], top, max_new_tokens=2)
    TransformersEngine(lm).generate(["a"], inner, max_new_tokens=2)


def test_long_prompts_have_a_batch_of_their_own_and_replies_come_in_order_as_each_row_alone(
    lm: LanguageModel,
) -> None:
    asked = ["b" * 9, "x" * 300, "a", "c" * 20, "y" * 290, "d" * 15]
    alone = [
        TransformersEngine(lm, batch_size=1).generate([p], max_new_tokens=6, do_sample=False)[0]
        for p in asked
    ]
    shapes: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        shape = kwargs["input_ids"].shape
        if shape[1] > 1:
            shapes.append((int(shape[0]), int(shape[1])))

    engine = TransformersEngine(lm, batch_size=6)
    handle = lm.parts.backbone.register_forward_pre_hook(note, with_kwargs=True)
    found = engine.generate(asked, max_new_tokens=6, do_sample=False)
    handle.remove()
    assert [r.token_ids for r in found] == [r.token_ids for r in alone]
    lengths = [r.prompt_tokens for r in found]
    assert shapes == [(2, max(lengths)), (4, sorted(lengths)[3])]


def test_rows_together_never_come_to_more_tokens_than_allowed(lm: LanguageModel) -> None:
    batches: list[int] = []
    engine = TransformersEngine(lm, batch_size=32, batch_tokens=100)
    engine.generate(["a" * 10] * 12, max_new_tokens=10, do_sample=False, progress=batches.append)
    length = len(lm.encode(["a" * 10])[0])
    most = 100 // (length + 10)
    assert sum(batches) == 12
    assert max(batches) == most > 1
    with pytest.raises(SettingError, match="batch_tokens must be 1 or more; got 0"):
        TransformersEngine(lm, batch_tokens=0)
