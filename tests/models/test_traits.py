"""What ``find_traits`` says from a few tokens holds on long random inputs, compared here in another
way."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny import NAMES, ODD, RECURRENT, VOCAB, tiny_lm, tiny_model
from torch import Tensor
from transformers import MiniCPM3Config, MiniCPM3ForCausalLM, PreTrainedModel

from safeswitch.core.errors import ModelError
from safeswitch.models.traits import Traits, find_traits

SCALING = 3.2
DRAW = random.Random(11)
WINDOWS = {"mistral_sliding": 16, "gemma2": 16, "gemma3_text": 16, "gpt_neo": 16, "llama4_text": 16}


def tiny_minicpm3() -> PreTrainedModel:
    """A model that divides the final norm's states by ``SCALING`` before its head."""
    torch.manual_seed(0)
    config = MiniCPM3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dim_model_base=10,
        tie_word_embeddings=False,
    )
    model: PreTrainedModel = MiniCPM3ForCausalLM(config).float().eval()
    assert model.config.logits_scaling == SCALING
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape) + (parameter.dim() == 1))
    return model


def tokens(length: int) -> list[int]:
    return [DRAW.randrange(8, VOCAB) for _ in range(length)]


class Feed:
    """Feeds rows through one cache, chunk by chunk, with masks of our own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        names = inspect.signature(model.forward).parameters
        (self.cache_name,) = {"cache", "past_key_values", "cache_params"} & set(names)
        self.positions = "position_ids" in names
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        extra = {"position_ids": positions} if self.positions else {}
        if self.cache is not None:
            extra[self.cache_name] = self.cache
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=True, **extra)
        self.cache = getattr(output, self.cache_name)
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.no_grad()
def alone(model: PreTrainedModel, row: Sequence[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return logits


def padding_error(model: PreTrainedModel, lengths: Sequence[int], steps: int = 5) -> float:
    """Largest relative difference of logits between a left-padded batch, fed on token by token, and
    each row alone."""
    rows, width = [tokens(n + steps) for n in lengths], max(lengths)
    ids = torch.tensor([[0] * (width - n) + row[:n] for n, row in zip(lengths, rows, strict=True)])
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    feed, worst = Feed(model), 0.0
    for step in range(steps + 1):
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        logits = feed(ids, mask, positions)
        for i, (n, row) in enumerate(zip(lengths, rows, strict=True)):
            truth = alone(model, row[: n + step])[-1]
            worst = max(worst, float((logits[i] - truth).abs().max() / truth.abs().max()))
        if step < steps:
            ids = torch.tensor([[row[n + step]] for n, row in zip(lengths, rows, strict=True)])
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1)
    return worst


def masking_error(model: PreTrainedModel, prompt: int, pilot: int, after: int) -> float:
    """Largest relative difference between going on after a pilot that is masked out and never
    having run it."""
    row, feed, worst = tokens(prompt + after), Feed(model), 0.0
    feed(
        torch.tensor([row[:prompt]]),
        torch.ones(1, prompt, dtype=torch.long),
        torch.arange(prompt)[None],
    )
    for j in range(pilot):
        mask = torch.ones(1, prompt + j + 1, dtype=torch.long)
        feed(torch.tensor([tokens(1)]), mask, torch.tensor([[prompt + j]]))
    for j in range(after):
        mask = torch.tensor([[1] * prompt + [0] * pilot + [1] * (j + 1)])
        logits = feed(torch.tensor([[row[prompt + j]]]), mask, torch.tensor([[prompt + j]]))[0]
        truth = alone(model, row[: prompt + j + 1])[-1]
        worst = max(worst, float((logits - truth).abs().max() / truth.abs().max()))
    return worst


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_left_padding_is_allowed_only_where_it_changes_nothing(name: str) -> None:
    lm = tiny_lm(name)
    lengths = (15, 3, 18, 9) if lm.traits.rope_switch else (47, 3, 30, 18)
    assert lm.traits.pads_left == (padding_error(lm.model, lengths) < 1e-4)


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_masking_back_is_allowed_only_where_it_changes_nothing(name: str) -> None:
    lm = tiny_lm(name)
    shape = (6, 4, 5) if lm.traits.window else (14, 4, 5)
    assert lm.traits.masks_back == (masking_error(lm.model, *shape) < 1e-4)


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_the_window_tells_where_masking_back_ends(name: str) -> None:
    lm = tiny_lm(name)
    assert lm.traits.window == WINDOWS.get(name)
    if lm.traits.window:
        assert masking_error(lm.model, 12, 3, 8) > 1e-2
    elif lm.traits.masks_back and not lm.traits.rope_switch:
        assert masking_error(lm.model, 70, 5, 8) < 1e-4


def test_what_is_true_of_the_common_families() -> None:
    assert tiny_lm("llama").traits == Traits(pads_left=True, masks_back=True, window=None)
    assert not any(tiny_lm(name).traits.masks_back for name in RECURRENT)
    assert not tiny_lm("mpt").traits.masks_back


def test_a_rope_that_changes_with_the_length_is_told() -> None:
    lm = tiny_lm("phi3_longrope")
    assert lm.traits.rope_switch == 24
    assert padding_error(lm.model, (30, 9), steps=0) > 1e-2
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert tiny_lm("llama", rope_parameters=dynamic).traits.rope_switch == 512


@pytest.mark.parametrize("name", [*NAMES, *ODD])
def test_the_head_of_a_common_model_is_given_what_leaves_its_backbone(name: str) -> None:
    assert tiny_lm(name).traits.head_scale == 1.0


def test_a_scale_between_the_backbone_and_the_head_is_found() -> None:
    model = tiny_minicpm3()
    assert find_traits(model).head_scale == pytest.approx(1 / SCALING, rel=1e-5)
    assert find_traits(model.to(torch.bfloat16)).head_scale == pytest.approx(1 / SCALING, rel=1e-2)


def test_anything_but_a_scale_between_the_backbone_and_the_head_is_told() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_pre_hook(lambda module, args: (args[0] + 1.0,))
    assert find_traits(model).head_scale is None


def test_finding_traits_leaves_no_trace_and_works_in_half_precision() -> None:
    model = tiny_model("qwen3")
    before = {name: p.clone() for name, p in model.named_parameters()}
    find_traits(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert find_traits(model.to(torch.bfloat16)) == Traits(
        pads_left=True, masks_back=True, window=None
    )


def test_a_model_that_cannot_be_run_is_named() -> None:
    model = tiny_model("llama")
    model.forward = lambda **_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises((ModelError, ZeroDivisionError)):
        find_traits(model)


def test_a_model_without_a_cache_is_named() -> None:
    model = tiny_model("llama")
    whole = model.forward
    model.forward = lambda input_ids, attention_mask=None, **_: whole(input_ids)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="LlamaForCausalLM takes no cache"):
        find_traits(model)
