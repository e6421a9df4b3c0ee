"""Logistic regression on one state. Knows nothing of other points. Shapes: n requests, d hidden
size."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, check_labels
from safeswitch.probers.learned import LearnedProber, mark_unreadable, rows_at
from safeswitch.probers.logistic import Array, fit_logistic, log_loss
from safeswitch.probers.points import Labelled
from safeswitch.probers.recipes import HELD_FRACTION
from safeswitch.probers.settings import Limit, Number
from safeswitch.probers.split import balanced_weights, stratified_split
from safeswitch.probers.standardise import Standardiser, fit_standardiser

L2_GRID = (1000.0, 100.0, 10.0, 1.0, 0.1)
"""Strengths tried when none is given, strongest first."""


@PROBERS.add("linear")
class LinearProber(LearnedProber):
    """Class-balanced logistic regression with L2 on the standardised states at one point.

    Args:
        point: Where to read.
        l2: Strength of the penalty on the summed loss (scikit-learn's ``1 / C``). None: that of
            ``L2_GRID`` with the lowest loss on ``validation`` (or on a part held out), then fitted
            again on all fit rows.

    Attributes:
        mean_, scale_: Input scaling, ``[d]``.
        weight_, bias_: ``[d]`` and ``[1]``, on standardised states.
    """

    kind = "linear"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {"l2": Number(1e-8, 1e8, optional=True)}
    )
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mean_": "d", "scale_": "d", "weight_": "d", "bias_": "1"}
    )

    def __init__(self, point: ReadPoint, *, l2: float | None = None) -> None:
        self.points = (point,)
        self.l2 = l2

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; ``labels`` ``[n]`` bool; ``seed`` only moves the held-out
        part."""
        self.check_settings()
        owner, point = f"{self.kind} prober", self.points[0]
        truth = check_labels(activations, labels, owner)
        raw = rows_at(activations, point, owner)
        scaling = fit_standardiser(raw)
        rows, targets, weights = _arrays(scaling.apply(raw), truth)
        l2 = self.l2
        if l2 is None and validation is not None:
            held_truth = check_labels(*validation, owner=f"{owner} (validation)")
            held_rows = rows_at(validation[0], point, owner, width=raw.shape[1])
            l2 = choose_l2((rows, targets, weights), _arrays(scaling.apply(held_rows), held_truth))
        elif l2 is None:
            fit_rows, held = (r.numpy() for r in stratified_split(truth, HELD_FRACTION, seed))
            l2 = choose_l2(*((rows[r], targets[r], weights[r]) for r in (fit_rows, held)))
        theta = torch.from_numpy(fit_logistic(rows, targets, weights, l2=l2)).float()
        self.mean_, self.scale_ = scaling
        self.weight_, self.bias_ = theta[:-1].clone(), theta[-1:].clone()
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from the point's states ``[n, d]``."""
        rows, t = self.read(activations)
        logits = Standardiser(t["mean_"], t["scale_"]).apply(rows) @ t["weight_"] + t["bias_"]
        return mark_unreadable(torch.sigmoid(logits), rows)


Arrays = tuple[Array, Array, Array]


def _arrays(rows: Tensor, truth: Tensor) -> Arrays:
    """Rows, targets and balanced row weights in float64."""
    x = rows.double().cpu().numpy()
    return x, truth.double().numpy(), balanced_weights(truth).double().numpy()


def choose_l2(fit: Arrays, held: Arrays, grid: tuple[float, ...] = L2_GRID) -> float:
    """The strength of ``grid`` whose fit on ``fit`` has the lowest weighted log-loss on ``held``
    (the stronger on a tie); each fit starts from the one before."""
    best, lowest, theta = grid[0], np.inf, None
    for l2 in grid:
        theta = fit_logistic(*fit, l2=l2, start=theta)
        loss = log_loss(*held, theta)
        if loss < lowest:
            best, lowest = l2, loss
    return best
