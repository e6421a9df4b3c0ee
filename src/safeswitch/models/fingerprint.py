"""A short name for a model's weights, so that a bundle fitted on one model is refused on another.

Knows nothing of bundles. Reads a strided sample of every tensor: an 8B model takes about a second.
"""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel

from safeswitch.models.offload import loaded_parameters

_SAMPLES_PER_TENSOR = 64


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 (first 16 hex digits) over names, shapes and 64 evenly spaced values of every parameter.

    A tied parameter counts under each of its names: offloading may untie it.

    The values are compared as float32, so a lossless dtype change keeps the fingerprint.
    """
    digest = hashlib.sha256()
    for name, parameter in loaded_parameters(model):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        sample = flat[::step][:_SAMPLES_PER_TENSOR].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}:{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
