"""A short name for a model's weights, so that a bundle fitted on one model is refused on another.

Knows nothing of bundles. Reads a strided sample of every tensor: an 8B model takes about a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)

from safeswitch.core.errors import ModelError
from safeswitch.core.json_types import JsonObject
from safeswitch.models.locate import sees_images
from safeswitch.models.offload import loaded_parameters

_SAMPLES_PER_TENSOR = 64


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 (first 16 hex digits) over names, shapes and 64 evenly spaced values of every
    parameter.

    A tied parameter counts under each of its names: offloading may untie it.

    The values are compared as float32, so a lossless dtype change keeps the fingerprint.
    """
    return _digest(loaded_parameters(model))


def fingerprint_of_files(
    model: str | Path, revision: str | None = None, *, trust_remote_code: bool = False
) -> str:
    """The :func:`fingerprint` of a model folder or hub id in the cache, read from its files one
    tensor at a time.

    For engines that keep weights in another arrangement than ``transformers``.

    Raises:
        ModelError: no safetensors files, or files that do not hold every parameter under its own
            name.
    """
    folder = Path(model)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(model), revision=revision, local_files_only=True))
    holders: JsonObject = {}
    for file in sorted(folder.glob("*.safetensors")):
        opened: Any = safe_open(file, framework="pt")
        holders.update(dict.fromkeys(opened.keys(), opened))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        empty = _empty(config, trust_remote_code)
    parameters = list(loaded_parameters(empty))
    names: dict[int, list[str]] = {}
    for name, parameter in parameters:
        names.setdefault(id(parameter), []).append(name)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in parameters:
            stored = next((n for n in names[id(parameter)] if n in holders), None)
            if stored is None:
                raise ModelError(
                    f"{folder} holds no safetensors weights for {name}; its fingerprint cannot be "
                    "read from disk"
                )
            yield name, holders[stored].get_tensor(stored)

    return _digest(tensors())


def _empty(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    kind = AutoModelForImageTextToText if loads_with_vision(config) else AutoModelForCausalLM
    made: PreTrainedModel = kind.from_config(  # type: ignore[no-untyped-call]
        config, trust_remote_code=trust_remote_code
    )
    return made


def loads_with_vision(config: PretrainedConfig) -> bool:
    """Whether the model of this configuration is loaded with its vision part."""
    return sees_images(config) and type(config) in AutoModelForImageTextToText._model_mapping


def _digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        flat = _plain(parameter.detach()).reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        sample = flat[::step][:_SAMPLES_PER_TENSOR].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}:{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(tensor: Tensor) -> Tensor:
    """The values of a tensor that keeps them in parts, as torchao's do, and knows no views."""
    return tensor.dequantize() if is_traceable_wrapper_subclass(tensor) else tensor
