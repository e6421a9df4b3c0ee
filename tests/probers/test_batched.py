"""The hand-written gradient, the batched training, the sweep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.types import ReadPoint
from safeswitch.probers.batched import (
    FitRows,
    MLPWeights,
    first_weights,
    forward,
    gradients,
    losses,
    train,
)
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.recipes import RECIPES
from safeswitch.probers.sweep import sweep
from tests.probers.made_states import EARLY, LAST, PILOT, D, make_acts

POINTS = (EARLY, LAST, PILOT)
outputs = pytest.mark.parametrize("o", [1, 2])


def random_case(o: int) -> tuple[MLPWeights, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(o)
    weights = first_weights(3, 5, 7, o, g)
    x, labels = torch.randn(3, 6, 5, generator=g), (torch.rand(6, generator=g) > 0.5).float()
    return (
        weights,
        x,
        labels,
        torch.rand(6, generator=g),
        (torch.rand(6, 7, generator=g) > 0.3) / 0.7,
    )


@outputs
def test_the_gradient_by_hand_is_autograds(o: int) -> None:
    weights, x, labels, row_weights, keep = random_case(o)
    tracked = MLPWeights(*(t.clone().requires_grad_() for t in weights))
    losses(forward(x, tracked, keep), labels, row_weights).sum().backward()
    for t in weights:
        t.grad = torch.empty_like(t)
    gradients(x, labels, row_weights, weights, keep)
    for mine, theirs in zip(weights, tracked, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-5)


def test_two_outputs_are_trained_by_cross_entropy_on_a_softmax() -> None:
    weights, x, labels, _, _ = random_case(2)
    out = forward(x, weights)
    by_hand = torch.stack(
        [nn.functional.cross_entropy(torch.softmax(o, -1), labels.long()) for o in out]
    )
    torch.testing.assert_close(losses(out, labels, torch.ones(6)), by_hand)


def test_the_double_softmax_cannot_get_below_its_floor() -> None:
    certain = torch.tensor([[[-50.0, 50.0]]])
    assert float(losses(certain, torch.ones(1), torch.ones(1))) == pytest.approx(0.3133, abs=1e-4)


def test_the_papers_recipe_is_a_plain_module_under_adamw() -> None:
    activations, labels = make_acts(40)
    x, y, recipe = activations.at(LAST), labels.long(), RECIPES["paper"]
    g = torch.Generator().manual_seed(3)
    start = first_weights(1, D, 64, 2, g)
    model = nn.Sequential(nn.Linear(D, 64), nn.ReLU(), nn.Linear(64, 2), nn.Softmax(-1))
    for layer, w, b in ((model[0], start.w1, start.b1), (model[2], start.w2, start.b2)):
        layer.weight.data, layer.bias.data = w[0].T.clone(), b[0, 0].clone()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-5)
    for _ in range(recipe.epochs):
        order = torch.randperm(40, generator=g)
        for at in range(0, 40, 8):
            optimiser.zero_grad()
            rows = order[at : at + 8]
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    mine = MLPProber(LAST, recipe="paper").fit(activations, labels, seed=3)
    torch.testing.assert_close(mine.score(activations), model(x)[:, 1].detach(), atol=1e-5, rtol=0)


def test_the_score_is_the_forward_pass_written_out() -> None:
    activations, labels = make_acts(60)
    p = MLPProber(LAST, hidden=8).fit(activations, labels)
    x = (activations.at(LAST) - p.mean_) / p.scale_
    logit = torch.relu(x @ p.w1_ + p.b1_) @ p.w2_ + p.b2_
    torch.testing.assert_close(p.score(activations), torch.sigmoid(logit[:, 0]))


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_swept_prober_is_the_one_trained_alone(recipe: str, chunk: int | None) -> None:
    train_set, test_set = make_acts(100, gap=1.5), make_acts(60, seed=1, gap=1.5)
    result = sweep(
        *train_set, POINTS, measure_on=test_set, recipe=recipe, seed=5, chunk=chunk, n_boot=10
    )
    for point in POINTS:
        alone = MLPProber(point, recipe=recipe).fit(*train_set, seed=5)
        apart = (result.prober(point).score(test_set[0]) - alone.score(test_set[0])).abs().max()
        assert float(apart) < 1e-4


def test_a_sweep_measures_each_point_and_finds_the_informative_one() -> None:
    activations, labels = make_acts(120)
    noise = torch.randn(120, D, generator=torch.Generator().manual_seed(2))
    mixed = Activations({EARLY: noise, LAST: activations.at(LAST)})
    result = sweep(mixed, labels, (EARLY, LAST), measure_on=(mixed, labels), n_boot=10)
    assert result.best() == LAST
    assert result.metrics[LAST].auroc.value > 0.99


def test_a_sweep_refuses_a_point_twice_and_unequal_widths() -> None:
    activations, labels = make_acts(40)
    with pytest.raises(SettingError, match="different points"):
        sweep(activations, labels, (LAST, LAST), measure_on=(activations, labels))
    wide = Activations({LAST: activations.at(LAST), EARLY: torch.zeros(40, 3)})
    with pytest.raises(FitError, match="one width"):
        sweep(wide, labels, (LAST, EARLY), measure_on=(wide, labels))
    with pytest.raises(SettingError, match="no prober at 9"):
        sweep(activations, labels, (LAST,), measure_on=(activations, labels), n_boot=2).prober(
            ReadPoint(9)
        )


def test_early_stopping_keeps_the_best_weights_of_each_prober() -> None:
    activations, labels = make_acts(80, gap=0.5)
    held, truth = make_acts(60, seed=1, gap=0.5)
    recipe = RECIPES["default"].override(lr=0.1)
    x, hx = (torch.stack([a.at(p) / a.at(p).std(0) for p in POINTS]) for a in (activations, held))
    fit_part, held_part = FitRows.make(x, labels, True), FitRows.make(hx, truth, True)
    stopped = train(fit_part, held_part, recipe, 16, 0)
    last = train(fit_part, None, recipe, 16, 0)
    lower = [
        losses(forward(hx, w), held_part.labels, held_part.row_weights) for w in (stopped, last)
    ]
    assert bool((lower[0] < lower[1]).all())


def test_states_too_large_to_train_on_are_a_fit_error() -> None:
    activations, labels = make_acts(40)
    huge = Activations({LAST: activations.at(LAST).sign() * 3e38})
    with pytest.raises(FitError, match="diverged"):
        MLPProber(LAST, recipe="paper", lr=1.0).fit(huge, labels)
