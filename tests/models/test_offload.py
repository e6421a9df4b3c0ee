"""Models whose weights are placed elsewhere, rounded or quantised are read and switched like any
other."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from tests.engines.slow import reply_alone
from tests.engines.test_exactness import PROMPTS, two_stage
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer

from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Steering
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


def replies(lm: LanguageModel, switch: Switch) -> list[tuple[bool, tuple[int, ...]]]:
    found = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=8, do_sample=False)
    return [(r.decision.fired, r.token_ids) for r in found]


@pytest.mark.filterwarnings(
    "ignore:You are calling .generate.. with the .input_ids. being on a device"
)
@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_an_offloaded_model_has_the_same_fingerprint_and_switches_alike(name: str) -> None:
    here = tiny_lm(name)
    switch, _ = two_stage(here)
    expected = replies(here, switch)
    away = tiny_model(name)
    cpu_offload(away, execution_device=torch.device("cpu"))
    assert any(p.device.type == "meta" for p in away.parameters())
    there = LanguageModel(away, tiny_tokenizer())
    assert there.device.type == "cpu"
    assert there.fingerprint == here.fingerprint
    assert replies(there, switch) == expected


@pytest.mark.filterwarnings(
    "ignore:You are calling .generate.. with the .input_ids. being on a device"
)
def test_an_offloaded_model_is_steered_alike() -> None:
    here, away = tiny_lm("llama"), tiny_model("llama")
    vector = torch.randn(1, here.hidden_size, generator=torch.Generator().manual_seed(3))
    steering = Switch(Gate(always=True), Steering((2,), vector))
    expected = replies(here, steering)
    cpu_offload(away, execution_device=torch.device("cpu"))
    assert replies(LanguageModel(away, tiny_tokenizer()), steering) == expected


def test_a_model_dispatched_over_a_device_map_switches_alike() -> None:
    here = tiny_lm("llama")
    switch, _ = two_stage(here)
    spread = tiny_model("llama")
    parts = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(parts, "cpu")
    dispatch_model(spread, places, main_device="cpu", force_hooks=True)
    assert replies(LanguageModel(spread, tiny_tokenizer()), switch) == replies(here, switch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_switch_row_by_row_like_their_own_slow_run(
    dtype: torch.dtype,
) -> None:
    lm = LanguageModel(tiny_model("llama").to(dtype), tiny_tokenizer())
    switch, _ = two_stage(tiny_lm("llama"))
    found = replies(lm, switch)
    assert 0 < sum(fired for fired, _ in found) < len(found)
    alone = [replies_alone(lm, prompt, switch) for prompt in PROMPTS]
    same = sum(a == b for a, b in zip(found, alone, strict=True))
    assert same >= len(PROMPTS) - 1, "rounding may turn one near-tie, not more"


def replies_alone(lm: LanguageModel, prompt: str, switch: Switch) -> tuple[bool, tuple[int, ...]]:
    reply = TransformersEngine(lm).generate([prompt], switch, max_new_tokens=8, do_sample=False)[0]
    return reply.decision.fired, reply.token_ids


def test_int8_weights_are_read_and_switched() -> None:
    torchao = pytest.importorskip(
        "torchao.quantization", reason="torchao is not installed: quantised models not tested"
    )
    model = tiny_model("llama")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    lm = LanguageModel(model, tiny_tokenizer())
    switch, expected = two_stage(lm)
    rows = lm.encode(PROMPTS)
    for (fired, tokens), row, flag in zip(replies(lm, switch), rows, expected, strict=True):
        assert fired == flag
        assert list(tokens) == reply_alone(lm, row, 8, switch.actuator if flag else None)  # type: ignore[arg-type]
