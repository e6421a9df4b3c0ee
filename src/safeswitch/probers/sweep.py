"""Every (layer, position) prober of a grid in one batched job, with metrics for each.

Shapes: P points, n requests. Knows nothing of how a batch is trained.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError
from safeswitch.core.types import ReadPoint
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.points import Labelled, TrainedPoints, train_points
from safeswitch.statistics.prober_metrics import Estimate, ProberMetrics, measure


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Args:
        probers: Fitted prober by point, in the order asked for.
        metrics: Its metrics on the rows given to measure on.
    """

    probers: Mapping[ReadPoint, MLPProber]
    metrics: Mapping[ReadPoint, ProberMetrics]

    def prober(self, point: ReadPoint) -> MLPProber:
        """The prober at ``point``: what fitting it alone on the same data and seed gives, up to
        rounding."""
        if point not in self.probers:
            raise SettingError(
                f"sweep: no prober at {point}; swept: {', '.join(map(str, self.probers))}"
            )
        return self.probers[point]

    def best(self, figure: str = "auroc") -> ReadPoint:
        """The point with the highest ``figure``; the lowest layer and earliest position on a
        tie."""
        if figure not in ("auroc", "f1", "accuracy", "tpr_at_1_fpr"):
            raise SettingError(
                f"sweep: figure must be auroc, f1, accuracy or tpr_at_1_fpr; got {figure!r}"
            )

        def rank(point: ReadPoint) -> float:
            estimate: Estimate = getattr(self.metrics[point], figure)
            return estimate.value

        return max(sorted(self.metrics), key=rank)


def sweep(
    activations: Activations,
    labels: Tensor,
    points: Sequence[ReadPoint],
    *,
    measure_on: Labelled,
    groups: Sequence[Hashable] | None = None,
    recipe: str = "default",
    hidden: int = 64,
    validation: Labelled | None = None,
    seed: int = 0,
    chunk: int | None = None,
    threshold: float = 0.5,
    n_boot: int = 200,
) -> SweepResult:
    """Train an :class:`MLPProber` at each of ``points`` on the same rows, all in one batched job.

    Args:
        activations: States at all ``points`` (of one width), n requests.
        labels: ``[n]`` bool.
        points: The grid.
        measure_on: Requests and labels of the metrics; picking a point by them makes them
            validation data.
        groups: What those requests belong with, for the intervals; see :func:`measure`.
        recipe: ``default`` or ``paper``; see :class:`MLPProber`.
        hidden: Hidden units.
        validation: For early stopping; None: a part of ``activations`` is held out.
        seed: Of first weights, batch order and dropout, the same for each point.
        chunk: Most probers trained at once (bounds memory: each takes a float32 copy of its rows);
            None: all.
        threshold: Of F1 and accuracy.
        n_boot: Bootstrap resamples for each point.

    Raises:
        SettingError: no points, a point twice, or a setting outside its limits.
        FitError: labels that cannot be learned from, points of different widths, or diverged
            training.
        ActivationError: states that are missing or not finite.
    """
    if not points or len(set(points)) != len(points) or (chunk is not None and chunk < 1):
        raise SettingError(
            f"sweep: needs different points and a chunk of 1 or more; got {len(points)}, chunk "
            f"{chunk}"
        )
    probers = {point: MLPProber(point, recipe=recipe, hidden=hidden) for point in points}
    probers[points[0]].check_settings()
    full = probers[points[0]].full_recipe()
    size = chunk or len(points)
    parts: list[TrainedPoints] = []
    for at in range(0, len(points), size):
        some = points[at : at + size]
        part = train_points(
            activations, labels, some, full, hidden, validation=validation, seed=seed, owner="sweep"
        )
        parts.append(part)
    trained = TrainedPoints.joined(parts)
    metrics = {}
    truth = torch.as_tensor(measure_on[1])
    for i, point in enumerate(points):
        scores = probers[point].take(trained, i).score(measure_on[0])
        metrics[point] = measure(
            scores, truth, groups=groups, threshold=threshold, n_boot=n_boot, seed=seed
        )
    return SweepResult(probers, metrics)
