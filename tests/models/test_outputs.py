"""The modules whose outputs a block adds are found, in every kind of block that has two of them."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer
from transformers import GraniteConfig, GraniteForCausalLM

from safeswitch.core.errors import ModelError, SettingError
from safeswitch.core.types import Output
from safeswitch.engines.transformers.steer import acting
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.outputs import find_outputs
from safeswitch.switch.actuators.base import Steering

NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
FOUND: dict[str, tuple[str, str]] = {
    "llama": ("self_attn", "mlp"),
    "qwen2": ("self_attn", "mlp"),
    "qwen3": ("self_attn", "mlp"),
    "phi3": ("self_attn", "mlp"),
    "gpt2": ("attn", "mlp"),
    "gpt_neo": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),  # side by side
    "mixtral": ("self_attn", "mlp"),  # experts
    "gemma2": NORMS,
    "gemma3_text": NORMS,
    "olmo2": NORMS,
}
"""Names within the block, from the architectures' code."""


def named(lm: LanguageModel, block: int) -> tuple[str, ...]:
    own = {id(module): name for name, module in lm.parts.blocks[block - 1].named_modules()}
    return tuple(own[id(lm.outputs[Output(block, part)])] for part in ("attn", "mlp"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FOUND)
def test_the_modules_found_are_those_that_the_architecture_adds(
    name: str, dtype: torch.dtype
) -> None:
    lm = tiny_lm(name)
    lm.model.to(dtype)
    assert [named(lm, block) for block in range(1, lm.num_layers + 1)] == [
        FOUND[name]
    ] * lm.num_layers


def test_a_mixer_of_tokens_stands_for_the_attention() -> None:
    lm = tiny_lm("lfm2")
    assert [named(lm, block)[0] for block in (1, 2, 3)] == ["conv", "self_attn", "conv"]


@pytest.mark.parametrize("name", ["opt", "mamba", "falcon_h1", "bloom", "mpt", "llama4_text"])
def test_blocks_that_add_something_else_are_refused_with_what_can_be_read(name: str) -> None:
    lm = tiny_lm(name)
    with pytest.raises(
        ModelError,
        match=r"output 2\.mlp cannot be read.* of none of its blocks, and the residual stream",
    ):
        lm.site(Output(2, "mlp"))


def test_outputs_that_are_scaled_before_they_are_added_are_refused() -> None:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = GraniteConfig(vocab_size=264, num_key_value_heads=2, residual_multiplier=0.5, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = LanguageModel(GraniteForCausalLM(config), tiny_tokenizer())
    with pytest.raises(ModelError, match=r"GraniteForCausalLM: output 1\.attn cannot be read"):
        lm.site(Output(1, "attn"))


def test_a_block_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"output 4\.attn does not exist: tiny-llama has blocks 1\.\.3"
    ):
        tiny_lm("llama").site(Output(4, "attn"))


def test_what_is_in_force_on_the_model_is_no_hindrance_and_no_hook_stays() -> None:
    lm = tiny_lm("llama")
    with acting(lm, Steering((2,), torch.ones(1, lm.hidden_size), 3.0), [1.0]):
        before = [len(module._forward_hooks) for module in lm.model.modules()]
        assert set(find_outputs(lm.model, lm.parts).modules) == set(lm.outputs.modules)
        assert [len(module._forward_hooks) for module in lm.model.modules()] == before
    assert len(lm.outputs.modules) == 2 * lm.num_layers


def test_a_model_that_cannot_be_run_is_named() -> None:
    lm = LanguageModel(tiny_model("llama"), tiny_tokenizer())
    lm.parts.blocks[1].self_attn = torch.nn.Identity()
    with pytest.raises(
        ModelError, match="LlamaForCausalLM cannot be run to find what its blocks add"
    ):
        lm.site(Output(1, "mlp"))
