"""Means over the last tokens of each request in a step, where vLLM lays all requests' tokens one behind
the other.

A request's own tokens are told by their positions: they count up, and a prompt's begin at 0 where the
whole prompt is in the step. A mean of which a token is missing (an earlier step computed it, or the
prefix cache held it) is not a number, so that nothing is ever decided on half of it. Knows nothing of
vLLM. Letters: t tokens, d hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def means_of_last(states: Tensor, positions: Tensor, tokens: int) -> Tensor:
    """At each token, the mean over it and those before it in its request, ``tokens`` at most.

    Args:
        states: ``[t, d]``.
        positions: ``[t]`` or ``[3, t]``, of each token in its request, the first being 0.
        tokens: How many; 0 for all.

    Returns:
        ``[t, d]`` in the dtype of ``states``; NaN where a token of the mean is not in the step, or has
        states that are not finite. Neither touches other requests.
    """
    position = positions[0] if positions.dim() > 1 else positions
    place = torch.arange(len(states), device=states.device)
    count = position + 1
    if tokens:
        count = count.clamp(max=tokens)
    first = place - count + 1
    start = first.clamp(min=0)
    sound = torch.isfinite(states).all(1)
    # in float64, since a sum over a whole step is taken apart again
    sums = torch.where(sound[:, None], states, states.new_zeros(())).double().cumsum(0)
    sums = torch.cat([sums.new_zeros(1, sums.shape[1]), sums])
    faults = torch.cat([place.new_zeros(1), (~sound).long().cumsum(0)])
    whole = (first >= 0) & (position[start] == position - count + 1)
    whole &= faults[place + 1] == faults[start]
    means = (sums[place + 1] - sums[start]) / count[:, None]
    return torch.where(whole[:, None], means, torch.nan).to(states.dtype)
