"""The last layer of a fitted prober: what it is, and the same prober with another one.

A prober is a representation of a request and one logistic layer on it. The layer can be fitted anew
on few rows while the representation, which took many, stays. Shapes: n requests, f features, F
groups of features, P points read, d hidden size. Knows nothing of how rows are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError
from safeswitch.probers.added import AddedProber
from safeswitch.probers.base import Prober, prober_from_state
from safeswitch.probers.calibrate import log_odds
from safeswitch.probers.fusion import FusionProber
from safeswitch.probers.linear import LinearProber
from safeswitch.probers.logistic import Array, fit_logistic
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.multilayer import LayerAverageProber
from safeswitch.probers.standardise import Standardiser, fit_standardiser

HAVE_ONE = (
    "linear",
    "mlp with the recipe default",
    "steps",
    "outputs",
    "means",
    "layer_average",
    "fusion",
)


@dataclass(frozen=True, eq=False)
class LastLayer:
    """``logit = rows @ weights + bias``.

    Args:
        rows: ``[n, f]``, what the layer is given.
        weights: ``[f]``, in force.
        bias: In force.
        nonnegative: Whether its weights may not fall below 0.
    """

    rows: Array
    weights: Array
    bias: float
    nonnegative: bool = False

    def refit(self, targets: Array, row_weights: Array, ridge: float) -> Array:
        """The layer fitted on its rows, pulled towards the one in force.

        The penalty is ``ridge / 2`` times the squared distance of the weights, each in units of its
        feature's spread, on the weighted mean loss; the bias is free.

        Args:
            targets: ``[n]``, 0 or 1.
            row_weights: ``[n]``.
            ridge: Strength of the pull.

        Returns:
            ``[f + 1]``: weights, then bias.
        """
        scale = fit_standardiser(torch.from_numpy(self.rows)).scale.double().numpy()
        shipped = self.weights * scale
        found = fit_logistic(
            self.rows / scale,
            targets,
            row_weights,
            l2=ridge * float(row_weights.sum()),
            centre=shipped,
            nonnegative=self.nonnegative,
            start=np.append(shipped, self.bias),
        )
        return np.append(found[:-1] / scale, found[-1])


def last_layers(prober: Prober, activations: Activations) -> list[LastLayer]:
    """The last layer of a fitted prober on n requests; of an average over layers of the model, one
    for each.

    Raises:
        FitError: a prober that has none.
    """
    if isinstance(prober, LayerAverageProber):
        return [one for inner in prober.fitted() for one in last_layers(inner, activations)]
    if isinstance(prober, FusionProber):
        # what its readers say is the representation; they stay
        odds = torch.stack([log_odds(r.score(activations)) for r in prober.readers], 1)
        return [_layer(odds, prober.weights_, prober.bias_, nonnegative=True)]
    if isinstance(prober, LinearProber):
        rows, t = prober.read(activations)
        scaled = Standardiser(t["mean_"], t["scale_"]).apply(rows)
        return [_layer(scaled, t["weight_"], t["bias_"])]
    if isinstance(prober, MLPProber) and prober.full_recipe().outputs == 1:
        rows, t = prober.read(activations)
        scaled = Standardiser(t["mean_"], t["scale_"]).apply(rows)
        return [_layer(torch.relu(scaled @ t["w1_"] + t["b1_"]), t["w2_"][:, 0], t["b2_"])]
    if isinstance(prober, AddedProber):
        rows = torch.cat([prober.summed(activations, terms) for terms in prober.groups], 1)
        slopes = torch.linalg.pinv(_mixing(prober)) @ prober.weight_.double()
        return [_layer(rows, slopes.flatten(), prober.bias_)]
    raise FitError(
        f"a {prober.kind} prober has no last layer that could be fitted by itself; those that have "
        f"one: {', '.join(HAVE_ONE)}. Fit the switch again instead"
    )


def with_last_layers(prober: Prober, layers: Sequence[Array]) -> Prober:
    """The prober with other last layers, ``[f + 1]`` each, in the order of :func:`last_layers`; the
    given one stays as it is."""
    made = prober_from_state(*prober.state())
    if isinstance(made, LayerAverageProber):
        pairs = zip(made.fitted(), layers, strict=True)
        made.probers_ = tuple(with_last_layers(inner, [own]) for inner, own in pairs)
        return made
    (layer,) = (torch.from_numpy(own) for own in layers)
    weights, bias = layer[:-1], layer[-1:].float()
    if isinstance(made, FusionProber):
        made.weights_, made.bias_ = weights.float(), bias
    elif isinstance(made, LinearProber):
        made.weight_, made.bias_ = weights.float(), bias
    elif isinstance(made, MLPProber):
        made.w2_, made.b2_ = weights.float()[:, None], bias
    elif isinstance(made, AddedProber):
        slopes = weights.reshape(len(made.groups), -1)
        made.weight_, made.bias_ = (_mixing(made) @ slopes).float(), bias
    return made


def _layer(rows: Tensor, weights: Tensor, bias: Tensor, nonnegative: bool = False) -> LastLayer:
    return LastLayer(
        rows.detach().double().cpu().numpy(),
        weights.detach().double().cpu().numpy(),
        float(bias),
        nonnegative,
    )


def _mixing(prober: AddedProber) -> Tensor:
    """``[P, F]``: how a group's slopes make up the weights of the points that it is a sum of."""
    place = {point: i for i, point in enumerate(prober.points)}
    mixing = torch.zeros(len(place), len(prober.groups), dtype=torch.float64)
    for column, terms in enumerate(prober.groups):
        for point, factor in terms.items():
            mixing[place[point], column] = factor
    return mixing
