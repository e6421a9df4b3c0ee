"""Random directions in weight space of the size of the weights, and weights moved along them for a
while.

Knows nothing of what is measured meanwhile.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import Prober, prober_from_state
from safeswitch.switch.actuators.base import actuator_from_state
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch

Normalise = Literal["layer", "filter"]
NORMALISE: tuple[str, ...] = ("layer", "filter")
Move = tuple[int, float]
"""Seed of a direction, and how far to go along it: 1 is as far as the weights are from zero."""
_KEPT = ("norm", "mean", "scale")


def direction(name: str, weight: Tensor, seed: int, normalise: Normalise = "layer") -> Tensor:
    """A random direction for one tensor, float32 on the CPU, of the tensor's shape.

    ``layer``: ``g / ||g|| * ||W||`` with standard normal g and Frobenius norms (VISAGE, arXiv
    2405.17374, section 3). ``filter``: the same for each row by itself (Li et al. 2018, arXiv
    1712.09913, section 4). Tensors of norms and of input scaling, and whole numbers, stay: their
    direction is zero.

    Args:
        name: The tensor's name; with ``seed`` it decides what is drawn.
        weight: The tensor.
        seed: Of the direction.
        normalise: ``layer`` or ``filter``.
    """
    check_choice("direction", "normalise", normalise, NORMALISE)
    if not weight.is_floating_point() or any(part in name.lower() for part in _KEPT):
        return torch.zeros(weight.shape)
    draw = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
    noise, own = torch.randn(weight.shape, generator=draw), weight.detach().float().cpu()
    if normalise == "filter" and weight.dim() > 1:
        size = own.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1).clamp_min(1e-12)
        noise *= size.view(-1, *[1] * (weight.dim() - 1))
    else:
        noise *= own.norm() / noise.norm().clamp_min(1e-12)
    return noise


def moved(
    name: str, weight: Tensor, moves: Sequence[Move], normalise: Normalise = "layer"
) -> Tensor:
    """``weight + sum of distance * direction``, in the weight's dtype and place."""
    sum_ = weight.detach().float().cpu()
    for seed, distance in moves:
        sum_ = sum_ + distance * direction(name, weight, seed, normalise)
    return sum_.to(weight)


@contextmanager
def moved_model(
    lm: LanguageModel, moves: Sequence[Move], normalise: Normalise = "layer"
) -> Iterator[None]:
    """All weights of the model moved inside the block, and put back bit for bit after it, whatever
    happens in it.

    The model is locked meanwhile. ``lm.fingerprint`` keeps naming the unmoved weights, so that its
    switches still run.
    """
    known = lm.fingerprint
    assert known
    kept: list[tuple[Tensor, Tensor]] = []
    with lm.lock, torch.no_grad():
        try:
            for name, weight in lm.model.named_parameters():
                kept.append((weight, weight.detach().to("cpu", copy=True)))
                weight.copy_(moved(name, weight, moves, normalise))
            yield
        finally:
            for weight, old in kept:
                weight.copy_(old)


def moved_head(switch: Switch, moves: Sequence[Move], normalise: Normalise = "layer") -> Switch:
    """The switch with the tensors of its actuator moved.

    Raises:
        SettingError: the actuator has no tensors.
    """
    config, tensors = switch.actuator.state()
    if not tensors:
        raise SettingError(
            f"landscape: the actuator {switch.actuator.kind!r} has no tensors to move"
        )
    return replace(
        switch, actuator=actuator_from_state(config, _all_moved(tensors, "head", moves, normalise))
    )


def moved_probers(switch: Switch, moves: Sequence[Move], normalise: Normalise = "layer") -> Switch:
    """The switch with the learned tensors of its probers moved; thresholds and input scaling stay.

    Raises:
        SettingError: the gate has no probers.
    """
    stages = {
        n: s for n in ("stage1", "stage2", "watch") if (s := getattr(switch.gate, n)) is not None
    }
    if not stages:
        raise SettingError("landscape: the gate has no probers to move")

    def one(name: str, prober: Prober) -> Prober:
        config, tensors = prober.state()
        return prober_from_state(config, _all_moved(tensors, name, moves, normalise))

    gate: Gate = replace(
        switch.gate, **{n: replace(s, prober=one(n, s.prober)) for n, s in stages.items()}
    )
    return replace(switch, gate=gate)


def _all_moved(
    tensors: Mapping[str, Tensor], owner: str, moves: Sequence[Move], normalise: Normalise
) -> dict[str, Tensor]:
    return {
        name: moved(f"{owner}.{name}", tensor, moves, normalise) for name, tensor in tensors.items()
    }
