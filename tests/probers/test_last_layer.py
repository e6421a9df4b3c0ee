"""The last layer of each kind of prober that has one: it gives the prober's own scores, and a new
one is what is scored with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from safeswitch.core.errors import FitError
from safeswitch.core.types import ReadPoint
from safeswitch.probers.added import StepsProber
from safeswitch.probers.base import Prober
from safeswitch.probers.ensemble import EnsembleProber
from safeswitch.probers.fusion import FusionProber
from safeswitch.probers.last_layer import LastLayer, last_layers, with_last_layers
from safeswitch.probers.linear import LinearProber
from safeswitch.probers.mean_difference import MeanDifferenceProber
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.multilayer import LayerAverageProber
from tests.probers.made_states import LAST, make_acts

TWO = (ReadPoint(1), ReadPoint(2))
ONE_LAYER: dict[str, Callable[[], Prober]] = {
    "linear": lambda: LinearProber(TWO[0], l2=1.0),
    "mlp": lambda: MLPProber(TWO[0], hidden=8, epochs=20),
    "steps": lambda: StepsProber(blocks=(1, 2)),
    "fusion": lambda: FusionProber([LinearProber(TWO[0], l2=1.0), MLPProber(TWO[1], hidden=8)]),
}


def made():
    """States at layers 0 to 2, and labels."""
    acts, labels = make_acts()
    states = acts.at(LAST)
    turned = states.roll(1, dims=1)
    from safeswitch.activations.states import Activations

    points = {ReadPoint(0): turned - states, TWO[0]: states, TWO[1]: turned}
    return Activations(points), labels


@pytest.mark.parametrize("kind", ONE_LAYER)
def test_a_layer_gives_the_probers_own_scores(kind: str) -> None:
    acts, labels = made()
    prober = ONE_LAYER[kind]().fit(acts, labels)
    (layer,) = last_layers(prober, acts)
    own = 1 / (1 + np.exp(-(layer.rows @ layer.weights + layer.bias)))
    assert own == pytest.approx(prober.score(acts).numpy(), abs=1e-5)


@pytest.mark.parametrize("kind", ONE_LAYER)
def test_a_prober_scores_with_its_new_layer_and_the_old_one_stays(kind: str) -> None:
    acts, labels = made()
    prober = ONE_LAYER[kind]().fit(acts, labels)
    before = prober.score(acts)
    (layer,) = last_layers(prober, acts)
    other = np.append(layer.weights * 0.5, layer.bias + 1.0)
    changed = with_last_layers(prober, [other])
    expected = 1 / (1 + np.exp(-(layer.rows @ other[:-1] + other[-1])))
    assert expected == pytest.approx(changed.score(acts).numpy(), abs=1e-5)
    assert torch.equal(prober.score(acts), before)


def test_an_average_over_layers_has_one_for_each() -> None:
    acts, labels = made()
    prober = LayerAverageProber(TWO, "linear", {"l2": 1.0}).fit(acts, labels)
    layers = last_layers(prober, acts)
    assert len(layers) == 2
    same = with_last_layers(prober, [np.append(one.weights, one.bias) for one in layers])
    assert torch.allclose(same.score(acts), prober.score(acts), atol=1e-6)


@pytest.mark.parametrize(
    "prober",
    [
        MeanDifferenceProber(TWO[0]),
        EnsembleProber([TWO[0]], members=2, size=2),
        MLPProber(TWO[0], recipe="paper", hidden=8, epochs=1),
    ],
    ids=["mean_difference", "ensemble", "paper"],
)
def test_a_prober_without_one_says_so_and_names_those_that_have(prober: Prober) -> None:
    acts, labels = made()
    prober.fit(acts, labels)
    with pytest.raises(FitError, match=f"a {prober.kind} prober has no last layer.*steps"):
        last_layers(prober, acts)


def test_the_pull_towards_the_shipped_weights_is_in_the_features_own_units() -> None:
    # One feature of spread 2 that tells nothing; the weight is pulled to the shipped one, 3.
    rows = np.array([[-2.0], [2.0], [-2.0], [2.0]])
    layer = LastLayer(rows, np.array([3.0]), 0.0)
    targets, ones = np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4)
    strong = layer.refit(targets, ones, 1e4)
    assert strong == pytest.approx([3.0, 0.0], abs=1e-3)
    weak = layer.refit(targets, ones, 1e-6)
    assert weak == pytest.approx([0.0, 0.0], abs=1e-3)
    # where the gradient of the penalty equals that of the loss: ridge * 2 (w - 3) = -d loss / d (2 w)
    half = layer.refit(targets, ones, 0.1)[0]
    z = 2 * half
    loss_gradient = 1 / (1 + np.exp(-z)) - 0.5
    assert 0.1 * (2 * half - 6.0) == pytest.approx(-loss_gradient, abs=1e-4)
