"""Means over the last tokens of each request in a step, where vLLM lays all requests' tokens one behind
the other.

A request's own tokens are told by their positions, which count up. That is enough where every prompt
in the step is whole, from its position 0 on; an engine that may cut prompts, or hand over the rest
that its prefix cache does not hold, is refused or told not to
(:func:`safeswitch.engines.vllm.load.refuse_cut_prompts`, ``skip_reading_prefix_cache``). Behind that
stands one check more: a mean of which the first token is not where it must be is not a number. Knows
nothing of vLLM. Letters: t tokens, d hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 512
"""Of the hidden size, how many are summed at a time: the sums are float64, of all tokens of a step."""


def means_of_last(states: Tensor, positions: Tensor, tokens: int) -> Tensor:
    """At each token, the mean over it and those before it in its request, ``tokens`` at most.

    Args:
        states: ``[t, d]``.
        positions: ``[t]`` or ``[3, t]``, of each token in its request, the first being 0.
        tokens: How many; 0 for all.

    Returns:
        ``[t, d]`` in the dtype of ``states``; NaN where the mean's first token is not found in its
        place, or a token of it has states that are not finite, which costs no other request its mean.
    """
    position = positions[0] if positions.dim() > 1 else positions
    place = torch.arange(len(states), device=states.device)
    count = position + 1
    if tokens:
        count = count.clamp(max=tokens)
    first = place - count + 1
    start = first.clamp(min=0)
    sound = torch.isfinite(states).all(1)
    faults = torch.cat([place.new_zeros(1), (~sound).long().cumsum(0)])
    whole = (first >= 0) & (position[start] == position - count + 1)
    whole &= faults[place + 1] == faults[start]
    found = torch.empty_like(states)
    for columns in range(0, states.shape[1], _COLUMNS):
        part = states[:, columns : columns + _COLUMNS]
        # in float64, since a sum over a whole step is taken apart again
        sums = torch.where(sound[:, None], part, part.new_zeros(())).double().cumsum(0)
        sums = torch.cat([sums.new_zeros(1, sums.shape[1]), sums])
        means = (sums[place + 1] - sums[start]) / count[:, None]
        found[:, columns : columns + _COLUMNS] = torch.where(whole[:, None], means, torch.nan)
    return found
