"""Tiny random models and a byte-level tokenizer, built in code: no network, no files, a few
milliseconds each.

Weights are redrawn wide, so that states differ from layer to layer, greedy replies vary, and
mistakes show.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from safeswitch.models.language_model import LanguageModel

PAD, BOS, EOS = 0, 1, 2
SPECIALS = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|think|>",
    "<|tool|>",
)
VOCAB = 256 + len(SPECIALS)
CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_DECODER: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = {
    **_DECODER,
    "num_hidden_layers": 4,
    "sliding_window": 16,
    "query_pre_attn_scalar": 8,
    "tie_word_embeddings": True,
}
_SSM: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _DECODER),
    "llama_tied": ("Llama", {**_DECODER, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "qwen3": ("Qwen3", _DECODER),
    "mistral_sliding": ("Mistral", {**_DECODER, "sliding_window": 16}),
    "gemma2": ("Gemma2", _GEMMA),
    "gemma3_text": ("Gemma3Text", {**_GEMMA, "sliding_window_pattern": 2}),
    "phi3": ("Phi3", {k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "gpt2": ("GPT2", {**_COMMON, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}),
    "gpt_neox": (
        "GPTNeoX",
        {k: v for k, v in _DECODER.items() if k not in ("head_dim", "num_key_value_heads")},
    ),
    "opt": (
        "OPT",
        {
            **_COMMON,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 32,
        },
    ),
    "mixtral": (
        "Mixtral",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "mamba": ("Mamba", {**_COMMON, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}),
    "bamba": ("Bamba", {**_DECODER, **_SSM, "attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1", {**_DECODER, **_SSM, "mamba_d_ssm": 64}),
    "lfm2": (
        "Lfm2",
        {
            **_DECODER,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "olmo2": ("Olmo2", {k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "bloom": ("Bloom", {**_COMMON, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "mpt": ("Mpt", {**_COMMON, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 512}),
    "gpt_neo": (
        "GPTNeo",
        {
            **_COMMON,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 16,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "llama4_text": (
        "Llama4Text",
        {
            **_DECODER,
            "num_hidden_layers": 4,
            "attention_chunk_size": 16,
            "num_local_experts": 2,
            "intermediate_size_mlp": 48,
        },
    ),
    "phi3_longrope": (
        "Phi3",
        {
            **{k: v for k, v in _DECODER.items() if k != "head_dim"},
            "original_max_position_embeddings": 24,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0, 3.0, 4.0, 5.0],
                "original_max_position_embeddings": 24,
            },
        },
    ),
}

TRANSFORMERS: tuple[str, ...] = (
    "llama",
    "llama_tied",
    "qwen2",
    "qwen3",
    "mistral_sliding",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "mixtral",
)
RECURRENT: tuple[str, ...] = ("mamba", "bamba", "falcon_h1", "lfm2")
NAMES: tuple[str, ...] = TRANSFORMERS + RECURRENT
ODD: tuple[str, ...] = ("bloom", "mpt", "gpt_neo", "llama4_text", "phi3_longrope", "olmo2")
"""Further architectures with a peculiarity each: alibi, local attention without a window in the
cache, chunked attention, rotary frequencies that change with the length, norms behind the halves of
a block instead of before."""


def tiny_model(name: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random float32 causal LM of architecture ``name`` (``NAMES`` or ``ODD``); ``overrides`` go
    to its config."""
    family, settings = _CONFIGS[name]
    config = getattr(transformers, f"{family}Config")(**{**settings, **overrides})
    quiet = logging.getLogger("transformers")
    level, _ = quiet.level, quiet.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = getattr(transformers, _causal_class(family))(config)
    finally:
        quiet.setLevel(level)
    model: PreTrainedModel = built.float().eval()
    _redraw(model, seed)
    return model


def _causal_class(family: str) -> str:
    return "GPT2LMHeadModel" if family == "GPT2" else f"{family.removesuffix('Text')}ForCausalLM"


@torch.no_grad()
def _redraw(model: PreTrainedModel, seed: int) -> None:
    """Matrices from N(0, 0.25), norms jittered; state-space decay parameters keep their own
    initialisation."""
    draw = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if name.endswith(("A_log", ".D", "dt_bias")):
            continue
        if parameter.dim() > 1:
            parameter.copy_(0.25 * noise)
        else:
            parameter.add_(0.1 * noise)


def tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of ``VOCAB`` entries with pad, bos, eos and role tokens; decodes every
    byte string."""
    vocab = {token: i for i, token in enumerate(SPECIALS)}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_lm(
    name: str = "llama",
    *,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    **overrides: Any,
) -> LanguageModel:
    """``tiny_model(name)`` with ``tiny_tokenizer()`` as a :class:`LanguageModel`."""
    return LanguageModel(
        tiny_model(name, seed=seed, **overrides),
        tiny_tokenizer(chat_template=chat_template),
        model_id=f"tiny-{name}",
    )
