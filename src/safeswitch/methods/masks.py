"""Which entries of a weight difference to keep: SafePatching's tools (arXiv 2405.13820, section 3)
and task arithmetic.

All are functions of tensors by parameter name. Differences are the user's; nothing here trains on
harmful data. Knows nothing of models or methods.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from safeswitch.core.errors import SettingError, check_range

Tensors = Mapping[str, Tensor]


def importance(weights: Tensors, gradients: Tensors) -> dict[str, Tensor]:
    """SNIP's score ``|W_ij * dL/dW_ij|`` of every entry."""
    return {name: (weight * gradients[name]).abs() for name, weight in weights.items()}


def top_mask(scores: Tensors, fraction: float) -> dict[str, Tensor]:
    """Bool masks of the ``fraction`` of entries with the highest scores, within each parameter; one
    at least, unless it is 0."""
    check_range("top_mask", "fraction", fraction, 0.0, 1.0)
    masks = {}
    for name, score in scores.items():
        flat = score.flatten()
        chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        chosen[flat.topk(max(1, round(fraction * len(flat))) if fraction else 0).indices] = True
        masks[name] = chosen.view_as(score)
    return masks


def retained(differences: Tensors, probability: float, seed: int) -> dict[str, Tensor]:
    """Each entry kept with ``probability``, else 0 (no rescaling, as in the paper)."""
    check_range("retained", "probability", probability, 0.0, 1.0)
    draw = torch.Generator().manual_seed(seed)
    return {
        name: d * (torch.rand(d.shape, generator=draw) < probability).to(d.device, d.dtype)
        for name, d in differences.items()
    }


def patched(
    safety: Tensors,
    safety_mask: Tensors,
    other: Tensors | None,
    other_mask: Tensors,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> dict[str, Tensor]:
    """The sparse merge ``alpha * safety|(A minus B) + beta * other|(B minus A)``.

    Args:
        safety: Differences that make the model refuse.
        safety_mask: A: where they are important.
        other: Differences that keep it from refusing too much; None where there are none.
        other_mask: B: where these are important, or, without them, what is to be spared.
        alpha: Multiplier of the first.
        beta: Multiplier of the second.

    Raises:
        SettingError: parameters of other names or shapes.
    """
    check_alike(safety, safety_mask, other_mask, *([other] if other is not None else []))
    merged = {}
    for name, d in safety.items():
        a, b = safety_mask[name], other_mask[name]
        merged[name] = alpha * d * (a & ~b)
        if other is not None:
            merged[name] = merged[name] + beta * other[name] * (b & ~a)
    return merged


def merged(differences: Mapping[str, Tensors], fractions: Mapping[str, float]) -> dict[str, Tensor]:
    """The weighted sum of several differences from one base (task arithmetic; linear merging of
    arXiv 2410.07571)."""
    if not differences or set(differences) != set(fractions):
        raise SettingError(
            f"merged: one fraction for each of {', '.join(differences) or 'nothing'}; got "
            f"{', '.join(fractions)}"
        )
    check_alike(*differences.values())
    first = next(iter(differences.values()))
    sums: dict[str, Tensor] = {}
    for name in first:
        parts = [fractions[which] * own[name] for which, own in differences.items()]
        sums[name] = torch.stack(parts).sum(0)
    return sums


def check_alike(*groups: Tensors) -> None:
    """Raise :class:`SettingError` unless all groups hold the same names with the same shapes."""
    first = {name: tuple(t.shape) for name, t in groups[0].items()}
    for group in groups[1:]:
        other = {name: tuple(t.shape) for name, t in group.items()}
        if other != first:
            wrong = sorted(
                name for name in first.keys() | other.keys() if first.get(name) != other.get(name)
            )
            raise SettingError(
                f"differences must be of the same parameters; not alike: {', '.join(wrong)}"
            )
