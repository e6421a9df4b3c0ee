"""From token logits to one logit a request: sliding mean, then softmax-weighted pooling.

Shapes: n requests, w tokens. Knows nothing of states or probers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def right_align(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` and ``mask`` ``[n, w]`` with each row's real tokens moved to its end, in order;
    padding becomes 0."""
    order = torch.argsort(mask.to(torch.int8), dim=1, stable=True)
    mask = mask.gather(1, order)
    return torch.where(mask, values.gather(1, order), 0.0), mask


def sliding_mean(logits: Tensor, mask: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Mean of each ``m`` adjacent token logits; a row with fewer than ``m`` tokens has one mean, of
    all of them.

    Args:
        logits: ``[n, w]``, right-aligned (see :func:`right_align`).
        mask: ``[n, w]`` bool.
        m: Length of the sliding window in tokens, 1 or more.

    Returns:
        Means ``[n, w]``, each at its window's last token, and a bool mask ``[n, w]`` of where there
        is one.

    Examples:
        >>> logits = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 5.0]])
        >>> means, there = sliding_mean(logits, logits > 0, 2)
        >>> means.tolist()
        [[0.0, 1.5, 4.0], [0.0, 0.0, 5.0]]
        >>> there.tolist()
        [[False, True, True], [False, False, True]]
    """
    if logits.numel() == 0:
        return logits, mask
    both = F.pad(torch.stack((logits, mask.to(logits.dtype)), 1), (m - 1, 0))
    sums, counts = (F.avg_pool1d(both, m, stride=1) * m).unbind(1)
    counts = counts.round()
    full = counts >= mask.sum(1, keepdim=True).clamp(1, m)
    return torch.where(full, sums / counts.clamp_min(1.0), 0.0), full & mask


def softmax_pool(logits: Tensor, mask: Tensor, tau: float) -> Tensor:
    """``sum_t softmax(logits / tau)_t * logits_t`` over the unmasked tokens, ``[n]``; NaN for a row
    without any."""
    weights = torch.softmax((logits / tau).masked_fill(~mask, -torch.inf), dim=1)
    return (weights * logits).sum(1)


def pool_tokens(logits: Tensor, mask: Tensor, m: int, tau: float) -> Tensor:
    """One logit a request ``[n]`` from token logits ``[n, w]``: masked tokens never count, wherever
    they stand."""
    aligned, real = right_align(logits, mask)
    return softmax_pool(*sliding_mean(aligned, real, m), tau)
