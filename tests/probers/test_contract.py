"""One battery for every registered kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.artifact import read_tensors, write_tensors
from safeswitch.core.errors import (
    ActivationError,
    ArtifactError,
    FitError,
    NotFittedError,
    SettingError,
)
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, Prober, prober_from_state
from safeswitch.probers.build import make_prober, places_of
from tests.probers.made_states import EARLY, LAST, WINDOW, make_acts

MIXED = [
    {"kind": "mlp", "point": str(LAST)},
    {"kind": "window", "point": str(WINDOW)},
    {"kind": "ngram"},
]
SPECS: dict[str, dict[str, Any]] = {
    "mlp": {"point": str(LAST)},
    "mlp paper": {"point": str(LAST), "recipe": "paper", "lr": 1e-3},
    "linear": {"point": str(LAST)},
    "mean_difference": {"point": str(LAST)},
    "layer_average": {
        "points": [str(EARLY), str(LAST)],
        "inner": "linear",
        "settings": {"l2": 1.0},
    },
    "steps": {"blocks": [3]},
    "outputs": {"blocks": [3]},
    "means": {"blocks": [3], "tokens": 8},
    "window": {"point": str(WINDOW)},
    "window mlp": {"point": str(WINDOW), "hidden": 8},
    "ngram": {"buckets": 512},
    "fusion": {"readers": MIXED},
    "fusion fitted": {"readers": MIXED, "weights": "fitted"},
}


IN_CODE = {"appending", "transition", "likelihood", "condition", "ensemble"}
"""Made in code by methods; ``tests/methods`` holds them to their formulas."""
PLACES = {"point": str(LAST), "points": [str(EARLY), str(LAST)], "blocks": [3]}


def by_itself(kind: str) -> dict[str, Any] | None:
    """Where a kind reads, for one that needs to be told no more; None for others."""
    try:
        return {place: PLACES[place] for place in places_of(kind)}
    except SettingError:
        return None


for found in PROBERS:
    places = None if found in SPECS or found in IN_CODE else by_itself(found)
    if places is not None:
        SPECS[found] = places


def make(name: str) -> Prober:
    return make_prober({"kind": name.split()[0], **SPECS[name]})


Fitted = Callable[[str], Prober]


@pytest.fixture(scope="session")
def fitted(data: tuple[Activations, Tensor]) -> Fitted:
    cache: dict[str, Prober] = {}

    def get(name: str) -> Prober:
        if name not in cache:
            cache[name] = make(name).fit(*data)
        return cache[name]

    return get


every = pytest.mark.parametrize("name", SPECS)


def spoil(activations: Activations, row: int) -> Activations:
    states = {p: t.clone() for p, t in activations.states.items()}
    for tensor in states.values():
        tensor.view(len(activations), -1)[row, -1] = torch.nan
    return Activations(states, activations.masks, activations.texts)


def test_every_registered_kind_is_in_the_battery() -> None:
    assert {name.split()[0] for name in SPECS} | IN_CODE == set(PROBERS)


@every
def test_kind_is_the_registered_name(name: str) -> None:
    assert type(make(name)) is PROBERS[make(name).kind]


@every
def test_fit_returns_self(name: str, data: tuple[Activations, Tensor]) -> None:
    prober = make(name)
    assert prober.fit(*data) is prober


@every
def test_fitting_twice_gives_the_same_scores(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    again = make(name).fit(*data).fit(*data)
    assert torch.equal(again.score(data[0]), fitted(name).score(data[0]))


@every
def test_score_and_state_before_fit_say_to_fit(name: str, data: tuple[Activations, Tensor]) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        make(name).score(data[0])
    with pytest.raises(NotFittedError, match="fit"):
        make(name).state()


@every
def test_one_class_is_refused(name: str, data: tuple[Activations, Tensor]) -> None:
    with pytest.raises(FitError, match="both classes"):
        make(name).fit(data[0], torch.ones(len(data[1]), dtype=torch.bool))


@every
def test_labels_of_another_length_are_refused(name: str, data: tuple[Activations, Tensor]) -> None:
    with pytest.raises(FitError, match="labels"):
        make(name).fit(data[0], data[1][:-1])


@every
def test_nan_in_fit_is_refused_with_the_row(name: str, data: tuple[Activations, Tensor]) -> None:
    with pytest.raises(ActivationError, match="row: 7"):
        make(name).fit(spoil(data[0], 7), data[1])


@every
def test_nan_in_a_row_gives_nan_in_its_score_only(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    prober = fitted(name)
    scores = prober.score(spoil(data[0], 7))
    reads = (
        torch.arange(len(scores)) == 7
        if prober.points
        else torch.zeros(len(scores), dtype=torch.bool)
    )
    assert torch.equal(torch.isnan(scores), reads)
    assert torch.equal(scores[~reads], prober.score(data[0])[~reads])


@every
def test_missing_states_are_an_activation_error(name: str, fitted: Fitted) -> None:
    with pytest.raises(ActivationError):
        fitted(name).score(Activations({ReadPoint(9): torch.zeros(2, 12)}))


@every
def test_scores_are_float32_probabilities_one_a_row(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    scores = fitted(name).score(data[0])
    assert scores.dtype == torch.float32
    assert scores.shape == (len(data[1]),)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert not scores.requires_grad


@every
def test_state_survives_json_and_safetensors_to_the_bit(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor], tmp_path: Path
) -> None:
    config, tensors = fitted(name).state()
    write_tensors(tmp_path / "p.safetensors", tensors)
    again = prober_from_state(
        json.loads(json.dumps(config)), read_tensors(tmp_path / "p.safetensors")
    )
    assert torch.equal(again.score(data[0]), fitted(name).score(data[0]))
    assert again.points == fitted(name).points
    config2, tensors2 = again.state()
    assert config2 == json.loads(json.dumps(config))
    assert all(torch.equal(tensors[k], tensors2[k]) for k in tensors | tensors2)


@every
def test_a_missing_tensor_is_an_artifact_error(name: str, fitted: Fitted) -> None:
    config, tensors = fitted(name).state()
    with pytest.raises(ArtifactError, match="missing"):
        prober_from_state(config, dict(list(tensors.items())[:-1]))


@every
def test_order_and_batching_do_not_change_scores(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    prober, (activations, _) = fitted(name), data
    whole = prober.score(activations)
    order = torch.randperm(len(activations), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        prober.score(activations.select(order)), whole[order], rtol=0, atol=1e-6
    )
    alone = torch.cat([prober.score(activations.select([i])) for i in range(9)])
    torch.testing.assert_close(alone, whole[:9], rtol=0, atol=1e-6)


@every
def test_no_rows_give_no_scores(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    assert fitted(name).score(
        data[0].select(torch.zeros(len(data[0]), dtype=torch.bool))
    ).shape == (0,)


@every
def test_inputs_are_not_modified(name: str) -> None:
    (activations, labels), (copy, truth) = make_acts(40), make_acts(40)
    make(name).fit(activations, labels).score(activations)
    assert torch.equal(labels, truth)
    assert all(torch.equal(activations.states[p], copy.states[p]) for p in activations.states)
    assert torch.equal(activations.masks[WINDOW], copy.masks[WINDOW])


@every
def test_score_does_not_change_the_prober(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    before = fitted(name).state()[1]
    fitted(name).score(data[0])
    assert all(torch.equal(t, before[k]) for k, t in fitted(name).state()[1].items())


@every
def test_separable_classes_are_separated_on_new_rows(name: str, fitted: Fitted) -> None:
    activations, labels = make_acts(200, seed=1)
    assert roc_auc_score(labels, fitted(name).score(activations)) > 0.95


@every
def test_a_validation_part_is_accepted(name: str, data: tuple[Activations, Tensor]) -> None:
    activations, labels = make_acts(200, seed=1)
    prober = make(name).fit(*data, validation=make_acts(40, seed=2))
    assert roc_auc_score(labels, prober.score(activations)) > 0.95


@every
def test_four_rows_are_enough_to_fit(name: str) -> None:
    assert make(name).fit(*make_acts(4)).score(make_acts(4)[0]).isfinite().all()


@every
def test_half_precision_states_are_scored(
    name: str, fitted: Fitted, data: tuple[Activations, Tensor]
) -> None:
    activations = data[0]
    half = Activations(
        {p: t.bfloat16() for p, t in activations.states.items()},
        activations.masks,
        activations.texts,
    )
    scores = fitted(name).score(half)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, fitted(name).score(activations), atol=0.15, rtol=0)
