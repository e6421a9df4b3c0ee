"""From recorded states to trained MLPs: checks, held-out rows, scaling, then the batched training.

Knows nothing of probers as objects. Shapes: P points, n requests, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import check_labels
from safeswitch.probers.batched import FitRows, MLPWeights, train
from safeswitch.probers.learned import rows_at
from safeswitch.probers.recipes import HELD_FRACTION, Recipe
from safeswitch.probers.split import stratified_split
from safeswitch.probers.standardise import Standardiser, fit_standardiser

Labelled = tuple[Activations, Tensor]


class TrainedPoints(NamedTuple):
    """One MLP per point: scaling (mean and scale ``[P, d]``) and weights (leading dimension P)."""

    scaling: Standardiser
    weights: MLPWeights

    @classmethod
    def joined(cls, parts: Sequence[TrainedPoints]) -> TrainedPoints:
        """All probers of ``parts``, in order."""
        scalings = zip(*[part.scaling for part in parts], strict=True)
        weights = zip(*[part.weights for part in parts], strict=True)
        return cls(Standardiser(*map(torch.cat, scalings)), MLPWeights(*map(torch.cat, weights)))


def train_points(
    activations: Activations,
    labels: Tensor,
    points: Sequence[ReadPoint],
    recipe: Recipe,
    hidden: int,
    *,
    validation: Labelled | None,
    seed: int,
    owner: str,
) -> TrainedPoints:
    """Train one MLP for each of ``points`` on states ``[n, d]`` and ``labels`` ``[n]`` bool.

    A recipe that stops early and has no ``validation`` holds out ``HELD_FRACTION`` of each class
    for it; a recipe that does not stop early trains on all rows.

    Raises:
        FitError: labels that cannot be learned from, points of different widths, or diverged
            training.
        ActivationError: states that are missing or not finite.
    """
    truth = check_labels(activations, labels, owner)
    if recipe.patience == 0:
        validation = None
    elif validation is None:
        fit_rows, held_rows = stratified_split(truth, HELD_FRACTION, seed)
        validation = activations.select(held_rows), truth[held_rows]
        activations, truth = activations.select(fit_rows), truth[fit_rows]
    x, scaling = _stack(activations, points, recipe, owner)
    held = None
    if validation is not None:
        held_truth = check_labels(*validation, owner=f"{owner} (validation)")
        held_x = torch.stack(
            [_scaled(validation[0], p, scaling, i, owner) for i, p in enumerate(points)]
        )
        held = FitRows.make(held_x, held_truth, recipe.balance)
    return TrainedPoints(
        scaling, train(FitRows.make(x, truth, recipe.balance), held, recipe, hidden, seed)
    )


def _stack(
    activations: Activations, points: Sequence[ReadPoint], recipe: Recipe, owner: str
) -> tuple[Tensor, Standardiser]:
    """Scaled rows ``[P, n, d]`` and the scaling, ``[P, d]`` each."""
    widths = {rows_at(activations, p, owner).shape[1] for p in points}
    if len(widths) != 1:
        raise FitError(
            f"{owner}: points trained together must have states of one width; got {sorted(widths)}"
        )
    scalings = []
    for point in points:
        rows = rows_at(activations, point, owner)
        none = Standardiser(rows.new_zeros(rows.shape[1]), rows.new_ones(rows.shape[1]))
        scalings.append(fit_standardiser(rows) if recipe.standardise else none)
    scaling = Standardiser(*(torch.stack(t) for t in zip(*scalings, strict=True)))
    return torch.stack(
        [_scaled(activations, p, scaling, i, owner) for i, p in enumerate(points)]
    ), scaling


def _scaled(
    activations: Activations, point: ReadPoint, scaling: Standardiser, i: int, owner: str
) -> Tensor:
    """Rows ``[n, d]`` at ``point`` under the i-th scaling."""
    mean, scale = scaling.mean[i], scaling.scale[i]
    rows = rows_at(activations, point, owner, width=len(mean)).to(mean.device)
    return Standardiser(mean, scale).apply(rows)
