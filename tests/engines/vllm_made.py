"""Models that vLLM's CPU kernels take (heads of 32), switches fitted on them, and engines over
both, each made once."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.activations.states import Activations
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import Prober
from safeswitch.probers.build import make_prober
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import BaseModel, Switch
from tests.engines.slow import random_head
from tests.switch.made import requests
from tests.tiny import tiny_lm

HAVE_VLLM = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(
    not HAVE_VLLM, reason="vllm is not installed (make test tries to, and says why it cannot)"
)
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
LAYERS: dict[str, tuple[int, ...]] = {
    "llama": (2, -1),
    "qwen2": (1, -1),
    "qwen3": (2, -1),
    "gemma3_text": (-1,),
    "gemma2": (-1,),
}
"""Layers to read; vLLM lets out middle ones where its model class supports it."""
NEW = 16
SUPPRESS: dict[str, Any] = {"suppress_tokens": [0]}
"""The reserved stop token (here the padding token) is forbidden to guarded requests; random models
would write it."""


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="safeswitch-test-"))


@cache
def lm(name: str) -> LanguageModel:
    shape = {k: v for k, v in SHAPE.items() if not (name == "qwen2" and k == "head_dim")}
    extra = {"query_pre_attn_scalar": 32} if name.startswith("gemma") else {}
    return tiny_lm(name, **shape, **extra)


@cache
def saved(name: str) -> Path:
    where = folder() / name
    made = lm(name)
    made.model.save_pretrained(where)
    made.tokenizer.save_pretrained(where)
    return where


@cache
def reference(name: str) -> TransformersEngine:
    exact = (
        {"attn_implementation": "eager"} if name == "gemma2" else {}
    )  # the default leaves Gemma 2's soft cap out
    return TransformersEngine(LanguageModel.load(saved(name), **exact), batch_size=16)


def _fitted(spec: dict[str, object], width: int, seed: int) -> Prober:
    """A prober fitted on noise and on the words of :func:`requests`: what it learnt does not matter
    here."""
    prober = make_prober(spec)
    draw = torch.Generator().manual_seed(seed)
    rows = requests()
    states = {point: torch.randn(len(rows), width, generator=draw) for point in prober.points}
    labels = torch.tensor([row.unsafe for row in rows])
    return prober.fit(Activations(states, {}, tuple(row.prompt for row in rows)), labels)


def _scores(name: str, gate: Gate, stage: str) -> list[float]:
    replies = reference(name).generate(
        requests(), Switch(gate, NoAction()), max_new_tokens=NEW, do_sample=False, **SUPPRESS
    )
    return sorted(
        reply.decision.scores[stage] for reply in replies if stage in reply.decision.scores
    )


def _between(scores: list[float], share: float) -> float:
    """A threshold below which ``share`` of the scores lie, half way between two of them."""
    at = int(share * len(scores))
    return (scores[at - 1] + scores[at]) / 2


@cache
def switch(name: str) -> Switch:
    """Stages that fire on about half of what they see, n-grams beside the layers, a watch every two
    tokens up to eight."""
    made, layers = reference(name).lm, [reference(name).lm.layer(layer) for layer in LAYERS[name]]
    width = made.hidden_size
    first = _fitted({"kind": "fusion", "readers": [
        {"kind": "layer_average", "points": [f"{layer}@prompt_end" for layer in layers]}, {"kind": "ngram"},
    ]}, width, 1)  # fmt: skip
    second = _fitted(
        {"kind": "layer_average", "points": [f"{layer}@pilot:2" for layer in layers]}, width, 2
    )
    third = _fitted(
        {"kind": "layer_average", "points": [f"{layer}@pilot:2" for layer in layers]}, width, 3
    )
    one = _scores(name, Gate(stage1=Stage(first, 1.0)), "stage1")
    stage1 = Stage(first, _between(one, 0.5))
    two = _scores(name, Gate(stage1=stage1, stage2=Stage(second, 1.0)), "stage2")
    stage2 = Stage(second, _between(two, 0.5))
    watched = {"watch_every": 2, "watch_until": 8}
    three = _scores(
        name, Gate(stage1=stage1, stage2=stage2, watch=Stage(third, 1.0), **watched), "watch"
    )
    gate = Gate(stage1=stage1, stage2=stage2, watch=Stage(third, _between(three, 0.8)), **watched)
    return Switch(gate, random_head(made), BaseModel.of(made))


def vllm_options(**changes: Any) -> dict[str, Any]:
    """Arguments of an engine on the CPU, with small chunks of prefill and prefix caching."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return {
        "dtype": "float32", "max_model_len": 256, "enforce_eager": True, "block_size": 32, "max_num_batched_tokens": 128,
        "max_num_seqs": 64, "enable_prefix_caching": True, **changes,
    }  # fmt: skip


def vllm_engine(name: str, **changes: Any) -> Any:
    """A guarded vLLM engine on the CPU (see :func:`vllm_options`)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from safeswitch.engines.vllm.engine import VLLMEngine

        chosen = changes.pop("switch", None) or switch(name)
        return VLLMEngine(saved(name), chosen, **vllm_options(**changes))
