"""Weights that are not where they compute: parameters that ``accelerate`` keeps elsewhere and loads
for each forward pass.

Knows accelerate's hooks. Knows nothing of what the weights mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def compute_device(module: nn.Module) -> torch.device:
    """Where ``module`` computes: its hook's execution device, else where its first parameter is."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if device is not None:
        return torch.device(device) if not isinstance(device, int) else torch.device("cuda", device)
    return next(module.parameters()).device


def loaded_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by full name, in the order of names, with its values also where it is
    offloaded.

    A tied parameter comes under each of its names.
    """
    for prefix, module in sorted(model.named_modules(), key=lambda pair: pair[0]):
        for name, parameter in sorted(
            module.named_parameters(recurse=False), key=lambda pair: pair[0]
        ):
            yield f"{prefix}.{name}".lstrip("."), _values(module, name, parameter)


def _values(module: nn.Module, name: str, parameter: Tensor) -> Tensor:
    if parameter.device.type != "meta":
        return parameter
    weights: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    return weights[name] if weights is not None else parameter
