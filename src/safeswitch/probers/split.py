"""Seeded splits of rows: stratified by label, or by whole clusters of requests that belong together.

Knows nothing of states or probers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safeswitch.core.errors import FitError

FEWEST_PER_CLASS = 4


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row indices ``(fit, held)``, each ascending, with ``fraction`` of each class held out (at least one row).

    With fewer than ``FEWEST_PER_CLASS`` rows in a class nothing can be spared: both parts are then all rows.

    Args:
        labels: ``[n]`` bool.
        fraction: Share of each class to hold out.
        seed: Same seed, same split.
    """
    everything = torch.arange(len(labels))
    classes = [everything[labels.cpu()], everything[~labels.cpu()]]
    if min(len(c) for c in classes) < FEWEST_PER_CLASS:
        return everything, everything
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for rows in classes:
        count = max(1, round(fraction * len(rows)))
        held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return everything[~held], everything[held]


def cluster_split(clusters: Sequence[str], fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row indices ``(fit, held)``: whole clusters are held out until ``fraction`` of the rows is reached.

    Raises:
        FitError: fewer than two clusters.
    """
    names = sorted(set(clusters))
    if len(names) < 2:
        raise FitError(f"a split by cluster needs at least 2 clusters; got {len(names)} in {len(clusters)} rows")
    sizes = dict.fromkeys(names, 0)
    for name in clusters:
        sizes[name] += 1
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held: set[str] = set()
    rows = 0
    for i in order[:-1]:
        if rows >= fraction * len(clusters):
            break
        held.add(names[i])
        rows += sizes[names[i]]
    mask = torch.tensor([name in held for name in clusters])
    index = torch.arange(len(clusters))
    return index[~mask], index[mask]


def balanced_weights(labels: Tensor) -> Tensor:
    """Weight per row, float32 ``[n]`` with mean 1, so that both classes weigh the same (``n / (2 n_class)``)."""
    n, positives = len(labels), int(labels.sum())
    if positives in (0, n):
        return torch.ones(n)
    return torch.where(labels, n / (2 * positives), n / (2 * (n - positives))).to(torch.float32)
