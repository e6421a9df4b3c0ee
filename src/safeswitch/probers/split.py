"""Seeded splits of rows: stratified by label, or by whole clusters of requests that belong
together.

Knows nothing of states or probers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from safeswitch.core.errors import FitError
from safeswitch.data.splits import STARTER, is_starter

FEWEST_PER_CLASS = 4
STARTER_FRACTION = 0.7
"""Of each class's weight, what the starter set has beside other sources.

Its pairs share words, form and language, so what tells them apart is harm; other sets have a style
of their own as well. Chosen with each of 23 public sets left out in turn; .5 to .9 do about as
well.
"""
Key = tuple[bool, str]
"""A label and a source."""


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row indices ``(fit, held)``, each ascending, with ``fraction`` of each class held out (at
    least one row).

    With fewer than ``FEWEST_PER_CLASS`` rows in a class nothing can be spared: both parts are then
    all rows.

    Args:
        labels: ``[n]`` bool.
        fraction: Fraction of each class to hold out.
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


def cluster_split(
    clusters: Sequence[str], labels: Tensor, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Row indices ``(fit, held)``: whole clusters are held out until ``fraction`` of the rows of
    each class is reached.

    A cluster of both classes counts as one of its commoner class.

    Args:
        clusters: Name of each row's cluster.
        labels: ``[n]`` bool.

    Raises:
        FitError: fewer than two clusters of a class.
    """
    counts: dict[str, list[int]] = {}
    for name, label in zip(clusters, labels.tolist(), strict=True):
        counts.setdefault(name, [0, 0])[label] += 1
    generator = torch.Generator().manual_seed(seed)
    held: set[str] = set()
    for label in (False, True):
        names = sorted(n for n, (safe, unsafe) in counts.items() if (unsafe > safe) == label)
        if len(names) < 2:
            word = "positive" if label else "negative"
            raise FitError(
                f"a split by cluster needs at least 2 clusters of each class; got {len(names)} "
                f"{word} ones"
            )
        wanted, rows = fraction * sum(sum(counts[n]) for n in names), 0
        for i in torch.randperm(len(names), generator=generator).tolist()[:-1]:
            if rows >= wanted:
                break
            held.add(names[i])
            rows += sum(counts[names[i]])
    mask = torch.tensor([name in held for name in clusters])
    index = torch.arange(len(clusters))
    return index[~mask], index[mask]


def balanced_weights(labels: Tensor) -> Tensor:
    """Weight per row, float32 ``[n]`` with mean 1, so that both classes weigh the same (``n / (2
    n_class)``).

    Examples:
        >>> balanced_weights(torch.tensor([True, False, False, False])).tolist()
        [2.0, 0.6666666865348816, 0.6666666865348816, 0.6666666865348816]
    """
    n, positives = len(labels), int(labels.sum())
    if positives in (0, n):
        return torch.ones(n)
    return torch.where(labels, n / (2 * positives), n / (2 * (n - positives))).to(torch.float32)


def source_weights(labels: Tensor, sources: Sequence[str]) -> Tensor:
    """Weight per row, float32 ``[n]`` with mean 1: classes weigh the same, and sources within one.

    The starter set counts as one source, in which rows weigh alike, and has ``STARTER_FRACTION`` of
    a class where there are other sources.

    Args:
        labels: ``[n]`` bool.
        sources: Name of each row's source; empty when not known, which gives
            :func:`balanced_weights`.

    Raises:
        FitError: names of another number than the labels.
    """
    if not sources:
        return balanced_weights(labels)
    if len(sources) != len(labels):
        raise FitError(
            f"weights by source need one source a row; got {len(sources)} for {len(labels)}"
        )
    names = [STARTER if is_starter(source) else source for source in sources]
    rows = list(zip(labels.tolist(), names, strict=True))
    size = Counter(rows)
    fractions: dict[Key, float] = {}
    for label in {label for label, _ in rows}:
        own = _fractions([name for of, name in size if of == label])
        fractions |= {(label, name): fraction for name, fraction in own.items()}
    classes = len({label for label, _ in rows})
    each = {key: len(rows) * fraction / size[key] / classes for key, fraction in fractions.items()}
    return torch.tensor([each[key] for key in rows], dtype=torch.float32)


def _fractions(names: Sequence[str]) -> dict[str, float]:
    """Of the weight of a class, what each of its sources has."""
    if STARTER not in names or len(names) == 1:
        return dict.fromkeys(names, 1 / len(names))
    rest = (1 - STARTER_FRACTION) / (len(names) - 1)
    return dict.fromkeys(names, rest) | {STARTER: STARTER_FRACTION}
