"""The difference of class means as a prober. Knows nothing of other points. Shapes: n requests, d
hidden size."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, check_labels
from safeswitch.probers.calibrate import platt_targets
from safeswitch.probers.learned import LearnedProber, mark_unreadable, rows_at
from safeswitch.probers.points import Labelled
from safeswitch.probers.recipes import HELD_FRACTION
from safeswitch.probers.settings import Limit
from safeswitch.probers.split import balanced_weights, stratified_split
from safeswitch.probers.standardise import Standardiser, fit_standardiser


@PROBERS.add("mean_difference")
class MeanDifferenceProber(LearnedProber):
    """Projection on the difference of class means of standardised states; 0.5 at the midpoint of
    the means.

    The direction is that of the refusal-direction literature (Arditi et al., arXiv 2406.11717). The
    slope from projection to log-odds is Platt's, without offset, fitted on ``validation`` or on a
    part held out.

    Args:
        point: Where to read.

    Attributes:
        mean_, scale_: Input scaling, ``[d]``.
        direction_: Unit direction from negative to positive, ``[d]``.
        midpoint_, slope_: Projection at which the score is 0.5, and log-odds per unit of
            projection, ``[1]`` each.
    """

    kind = "mean_difference"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType({})
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mean_": "d", "scale_": "d", "direction_": "d", "midpoint_": "1", "slope_": "1"}
    )

    def __init__(self, point: ReadPoint) -> None:
        self.points = (point,)

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; ``labels`` ``[n]`` bool. Raises :class:`FitError` too when both
        classes have the same mean."""
        owner, point = f"{self.kind} prober", self.points[0]
        truth = check_labels(activations, labels, owner)
        if validation is None:
            fit_rows, held_rows = stratified_split(truth, HELD_FRACTION, seed)
            held, held_truth = activations.select(held_rows), truth[held_rows]
            activations, truth = activations.select(fit_rows), truth[fit_rows]
        else:
            held, held_truth = (
                validation[0],
                check_labels(*validation, owner=f"{owner} (validation)"),
            )
        raw = rows_at(activations, point, owner)
        scaling = fit_standardiser(raw)
        rows, mask = scaling.apply(raw), truth.to(raw.device)
        positive, negative = rows[mask].mean(0), rows[~mask].mean(0)
        length = (positive - negative).norm()
        if not float(length) > 0:
            raise FitError(
                f"{owner}: both classes have the same mean state at {point}; nothing to project on"
            )
        direction = (positive - negative) / length
        midpoint = ((positive + negative) / 2 @ direction).reshape(1)
        offsets = (
            scaling.apply(rows_at(held, point, owner, width=raw.shape[1])) @ direction - midpoint
        )
        self.mean_, self.scale_ = scaling
        self.direction_, self.midpoint_ = direction, midpoint
        self.slope_ = torch.tensor([_slope(offsets, held_truth)], device=raw.device)
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from the point's states ``[n, d]``."""
        rows, t = self.read(activations)
        offsets = (
            Standardiser(t["mean_"], t["scale_"]).apply(rows) @ t["direction_"] - t["midpoint_"]
        )
        return mark_unreadable(torch.sigmoid(t["slope_"] * offsets), rows)


def _slope(offsets: Tensor, truth: Tensor) -> float:
    """Slope of ``sigmoid(slope * offset)`` under balanced log-loss with Platt's targets; positive,
    and finite."""
    from scipy.optimize import minimize_scalar  # heavy, and only fitting needs it

    x, labels = offsets.double().cpu().numpy(), truth.numpy()
    targets, weights = platt_targets(labels), balanced_weights(truth).double().numpy()
    spread = max(float(np.abs(x).mean()), 1e-12)

    def loss(log_slope: float) -> float:
        logits = np.exp(log_slope) * x
        return float(weights @ (np.logaddexp(0.0, logits) - targets * logits))

    centre = -np.log(spread)
    return float(
        np.exp(minimize_scalar(loss, bounds=(centre - 7.0, centre + 7.0), method="bounded").x)
    )
