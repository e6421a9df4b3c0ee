"""Directions from contrasts of states, and which layers carry them. Shapes: L layers, n requests, d
hidden size.

Knows nothing of gates or engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeswitch.models.language_model import LanguageModel

REFUSAL_WORDS: tuple[str, ...] = (
    "sorry",
    "cannot",
    "unable",
    "not",
    "refuse",
    "decline",
    "apologize",
    "can't",
    "won't",
)


def inner_layers(lm: LanguageModel, low: float = 0.25, high: float = 0.8) -> tuple[int, ...]:
    """Block outputs between two fractions of the depth, at least one; never the last, whose state
    is the final norm's."""
    top = lm.num_layers
    found = [layer for layer in range(1, top) if low * top <= layer <= high * top]
    return tuple(found) or (max(1, top // 2),)


def mean_difference(states: Tensor, unsafe: Tensor) -> Tensor:
    """``mean(unsafe) - mean(safe)`` by layer: ``[L, d]`` for ``states`` ``[L, n, d]``, ``unsafe``
    ``[n]`` bool."""
    return states[:, unsafe].mean(1) - states[:, ~unsafe].mean(1)


def pair_differences(states: Tensor, unsafe: Tensor) -> Tensor:
    """``unsafe_i - safe_i``, the shorter side deciding how many: ``[L, m, d]``."""
    first, second = states[:, unsafe], states[:, ~unsafe]
    count = min(first.shape[1], second.shape[1])
    return first[:, :count] - second[:, :count]


def pair_directions(differences: Tensor) -> Tensor:
    """Unit first principal direction of pair differences ``[L, m, d]``, pointing to their mean's
    side: ``[L, d]``.

    The differences are not centred: centring would take away the mean difference that is looked
    for. (The usual recipe shuffles which side comes first in each pair, which has the same effect.)
    """
    first: Tensor = torch.linalg.svd(differences, full_matrices=False).Vh[:, 0]
    sign = (first * differences.mean(1)).sum(-1, keepdim=True).sign()
    return first * torch.where(sign == 0, torch.ones_like(sign), sign)


def pair_accuracy(directions: Tensor, differences: Tensor) -> Tensor:
    """Fraction of pairs whose difference ``[L, m, d]`` points along the direction ``[L, d]``:
    ``[L]``."""
    return (torch.einsum("lmd,ld->lm", differences, directions) > 0).float().mean(1)


def keep_largest(directions: Tensor, fraction: float) -> Tensor:
    """``directions`` ``[L, d]`` with 0 for all but the largest ``fraction`` of each one's entries
    (one or more)."""
    count = max(1, round(fraction * directions.shape[1]))
    places = directions.abs().topk(count, dim=1).indices
    return torch.zeros_like(directions).scatter(1, places, directions.gather(1, places))


@torch.no_grad()
def refusal_alignment(lm: LanguageModel, directions: Tensor) -> Tensor:
    """How high the LM head ranks words of refusal along each direction ``[L, d]``: mean
    standardised logit, ``[L]``."""
    logits = lm.parts.head(directions.to(lm.head_device, lm.head_dtype)).float().cpu()
    standard: Tensor = (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)
    return standard[:, list(refusal_tokens(lm))].mean(1)


def refusal_tokens(lm: LanguageModel) -> tuple[int, ...]:
    """First tokens of words of refusal, with and without a space in front."""
    forms = [form for word in REFUSAL_WORDS for form in (word, word.capitalize(), f" {word}")]
    rows = [lm.tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms]
    return tuple(dict.fromkeys(int(row[0]) for row in rows if row))


def best_run(values: Sequence[float], length: int) -> range:
    """The ``length`` neighbours with the highest sum, the first among equals."""
    length = min(length, len(values))
    starts = range(len(values) - length + 1)
    start = max(starts, key=lambda i: (sum(values[i : i + length]), -i))
    return range(start, start + length)
