"""What each kind computes, against independent expectations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ActivationError, ArtifactError, FitError, SettingError
from safeswitch.probers.added import MeansProber, OutputsProber, StepsProber
from safeswitch.probers.base import prober_from_state
from safeswitch.probers.build import make_prober
from safeswitch.probers.fusion import FusionProber, stack
from safeswitch.probers.linear import LinearProber
from safeswitch.probers.mean_difference import MeanDifferenceProber
from safeswitch.probers.multilayer import LayerAverageProber
from safeswitch.probers.split import source_weights
from safeswitch.probers.standardise import fit_standardiser
from safeswitch.probers.text import NgramProber
from safeswitch.probers.window import WindowProber, pool_tokens, sliding_mean
from tests.probers.made_states import (
    ATTN,
    EARLY,
    EARLY_MEAN,
    LAST,
    MLP,
    NEXT,
    NEXT_MEAN,
    WINDOW,
    D,
    W,
    make_acts,
)


def test_standardised_rows_have_mean_zero_and_deviation_one() -> None:
    rows = make_acts()[0].at(LAST)
    scaled = fit_standardiser(rows).apply(rows)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(D))


def test_a_constant_column_does_not_explode() -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 7.0
    assert float(fit_standardiser(rows).apply(torch.full((1, 4), 7.1)).abs().max()) < 1e3
    assert torch.equal(fit_standardiser(torch.full((5, 2), 3.0)).scale, torch.ones(2))


@pytest.mark.parametrize("l2", [1.0, 100.0])
def test_linear_is_sklearns_balanced_logistic_regression(l2: float) -> None:
    activations, labels = make_acts(150, gap=1.0)
    keep = torch.arange(150) % 6 != 0  # leaves more negatives than positives
    activations, labels = activations.select(keep), labels[keep]
    scaler = StandardScaler().fit(activations.at(LAST).double().numpy())
    x = scaler.transform(activations.at(LAST).double().numpy())
    theirs = LogisticRegression(C=1 / l2, class_weight="balanced", tol=1e-10, max_iter=5000).fit(
        x, labels.numpy()
    )
    mine = LinearProber(LAST, l2=l2).fit(activations, labels)
    torch.testing.assert_close(
        mine.weight_, torch.from_numpy(theirs.coef_[0]).float(), atol=1e-4, rtol=0
    )
    expected = torch.from_numpy(theirs.predict_proba(x)[:, 1]).float()
    torch.testing.assert_close(mine.score(activations), expected, atol=1e-4, rtol=0)


def test_mean_difference_is_one_half_midway_and_rises_towards_the_positives() -> None:
    activations, labels = make_acts(400)
    p = MeanDifferenceProber(LAST).fit(activations, labels, validation=make_acts(100, seed=1))
    rows = activations.at(LAST)
    low, high = rows[~labels].mean(0), rows[labels].mean(0)
    path = torch.stack([low, (low + high) / 2, high])
    scores = p.score(Activations({LAST: path}))
    assert float(scores[1]) == pytest.approx(0.5, abs=1e-4)
    assert float(scores[0]) < 0.1 < 0.9 < float(scores[2])
    assert float(p.direction_.norm()) == pytest.approx(1.0, abs=1e-5)


def sklearn_on_steps(activations: Activations, labels: Tensor, ridge: float, weights: Any) -> Any:
    """Probabilities, by sklearn, from the standardised steps of blocks 3 and 4, over the square
    root of two."""
    early, between, last = (activations.at(p).double().numpy() for p in (EARLY, NEXT, LAST))
    x = (
        np.concatenate(
            [StandardScaler().fit_transform(s) for s in (between - early, last - between)], 1
        )
        / 2**0.5
    )
    regression = LogisticRegression(C=1 / (ridge * weights.sum()), tol=1e-10, max_iter=5000)
    return regression.fit(x, labels.numpy(), sample_weight=weights).predict_proba(x)[:, 1]


def test_steps_fold_a_regression_on_differences_into_one_vector_a_layer() -> None:
    activations, labels = make_acts(150, gap=1.0)
    keep = torch.arange(150) % 6 != 0
    activations, labels = activations.select(keep), labels[keep]
    n, positives = len(labels), int(labels.sum())
    weights = np.where(labels.numpy(), n / (2 * positives), n / (2 * (n - positives)))
    mine = StepsProber(blocks=(3, 4), ridge=0.01).fit(activations, labels)
    assert mine.points == (EARLY, NEXT, LAST)
    assert mine.weight_.shape == (3, D)
    expected = sklearn_on_steps(activations, labels, 0.01, weights)
    torch.testing.assert_close(
        mine.score(activations), torch.from_numpy(expected).float(), atol=1e-4, rtol=0
    )


def test_steps_do_not_see_what_no_block_adds() -> None:
    activations, labels = make_acts(100)
    p = StepsProber(blocks=(3, 4)).fit(activations, labels)
    drift = 20.0 * torch.randn(100, D, generator=torch.Generator().manual_seed(3))
    moved = Activations({point: activations.at(point) + drift for point in p.points})
    torch.testing.assert_close(p.score(moved), p.score(activations), atol=1e-4, rtol=0)


def test_every_source_weighs_the_same_within_its_class() -> None:
    activations, labels = make_acts(150, gap=1.0)
    sources = (*("large" if i % 10 else "small" for i in range(148)), "one", "other")
    weights = source_weights(labels, sources).double().numpy()
    truth = labels.numpy()
    expected = {
        (label, name): 150 / 2 / len({s for s, y in zip(sources, truth, strict=True) if y == label})
        for label, name in set(zip(truth.tolist(), sources, strict=True))
    }
    for (label, name), total in expected.items():
        inside = np.array([s == name for s in sources]) & (truth == label)
        assert weights[inside].sum() == pytest.approx(total, rel=1e-5)
        assert np.ptp(weights[inside]) == 0
    told = Activations(activations.states, activations.masks, activations.texts, sources)
    mine = StepsProber(blocks=(3, 4), ridge=0.01).fit(told, labels).score(activations)
    by_hand = torch.from_numpy(sklearn_on_steps(activations, labels, 0.01, weights)).float()
    torch.testing.assert_close(mine, by_hand, atol=1e-4, rtol=0)
    assert (
        float(
            (
                mine
                - StepsProber(blocks=(3, 4), ridge=0.01).fit(activations, labels).score(activations)
            )
            .abs()
            .max()
        )
        > 0.01
    )
    assert told.select([149, 0]).sources == ("other", "small")
    with pytest.raises(FitError, match="one source a row; got 149 for 150"):
        source_weights(labels, sources[1:])


def test_outputs_fold_a_regression_on_both_halves_into_one_vector_each() -> None:
    activations, labels = make_acts(150, gap=1.0)
    mine = OutputsProber(blocks=[3], ridge=0.01).fit(activations, labels)
    assert mine.points == (ATTN, MLP)
    x = np.concatenate(
        [StandardScaler().fit_transform(activations.at(p).double().numpy()) for p in (ATTN, MLP)], 1
    )
    x /= 2**0.5
    regression = LogisticRegression(C=1 / (0.01 * 150), tol=1e-10, max_iter=5000).fit(
        x, labels.numpy()
    )
    expected = torch.from_numpy(regression.predict_proba(x)[:, 1]).float()
    torch.testing.assert_close(mine.score(activations), expected, atol=1e-4, rtol=0)
    config, tensors = mine.state()
    assert config == {"kind": "outputs", "blocks": [3], "ridge": 0.01}
    torch.testing.assert_close(
        prober_from_state(config, tensors).score(activations), mine.score(activations)
    )


def test_means_fold_a_regression_on_the_steps_of_end_and_mean() -> None:
    activations, labels = make_acts(150, gap=1.0)
    mine = MeansProber(blocks=[3], tokens=8, ridge=0.01).fit(activations, labels)
    assert set(mine.points) == {EARLY, NEXT, EARLY_MEAN, NEXT_MEAN}
    steps = [
        (activations.at(after) - activations.at(before)).double().numpy()
        for before, after in ((EARLY, NEXT), (EARLY_MEAN, NEXT_MEAN))
    ]
    x = np.concatenate([StandardScaler().fit_transform(step) for step in steps], 1) / 2**0.5
    regression = LogisticRegression(C=1 / (0.01 * 150), tol=1e-10, max_iter=5000)
    regression.fit(x, labels.numpy())
    expected = torch.from_numpy(regression.predict_proba(x)[:, 1]).float()
    torch.testing.assert_close(mine.score(activations), expected, atol=1e-4, rtol=0)
    config, tensors = mine.state()
    assert config == {"kind": "means", "blocks": [3], "ridge": 0.01, "tokens": 8}
    again = prober_from_state(config, tensors)
    torch.testing.assert_close(again.score(activations), mine.score(activations))
    with pytest.raises(SettingError, match="tokens must be a whole number in"):
        MeansProber(blocks=[3], tokens=0).fit(activations, labels)


def test_the_starter_set_is_one_source_of_a_fixed_fraction() -> None:
    labels = torch.tensor([True] * 6 + [False] * 3)
    unsafe = ("starter/pairs", "starter/pairs", "starter/turns", "mine", "mine", "yours")
    weights = source_weights(labels, (*unsafe, "starter/pairs", "starter/general", "starter/turns"))
    of_a_class = 9 / 2
    expected = [0.7 / 3] * 3 + [0.15 / 2] * 2 + [0.15] + [1 / 3] * 3
    torch.testing.assert_close(weights, of_a_class * torch.tensor(expected))
    alone = source_weights(labels[2:8], ("a", "b", "b", "c", "starters", "d"))
    torch.testing.assert_close(alone, 6 / 2 * torch.tensor([1, 0.5, 0.5, 1, 1.5, 1.5]) / 3)


@pytest.mark.parametrize("blocks", [[], [0, 3], [3, 3], [2.5], "3", 3, [True]])
def test_blocks_that_cannot_be_are_refused(blocks: Any) -> None:
    with pytest.raises(
        SettingError,
        match=r"blocks must be a list of one or more different whole numbers in \[1, 4096\]",
    ):
        make_prober({"kind": "steps", "blocks": blocks})
    config, tensors = StepsProber(blocks=[3]).fit(*make_acts(20)).state()
    with pytest.raises(SettingError, match="blocks must be"):
        prober_from_state({**config, "blocks": blocks}, tensors)


def test_stored_steps_must_have_a_vector_for_every_layer() -> None:
    config, tensors = StepsProber(blocks=[3]).fit(*make_acts(20)).state()
    with pytest.raises(ArtifactError, match="'weight' must be \\[P, d\\] with P = 3"):
        prober_from_state({**config, "blocks": [3, 4]}, tensors)


def test_layer_average_is_the_mean_of_the_log_odds() -> None:
    activations, labels = make_acts(gap=1.0)
    average = LayerAverageProber((EARLY, LAST), "linear", {"l2": 1.0}).fit(activations, labels)
    alone = [
        LinearProber(p, l2=1.0).fit(activations, labels).score(activations) for p in (EARLY, LAST)
    ]
    expected = torch.sigmoid(torch.stack([torch.logit(s) for s in alone]).mean(0))
    torch.testing.assert_close(average.score(activations), expected, atol=1e-5, rtol=0)


def test_equal_fusion_of_one_reader_is_that_reader() -> None:
    activations, labels = make_acts(gap=1.0)
    alone = LinearProber(LAST, l2=10.0).fit(activations, labels).score(activations)
    fused = FusionProber([LinearProber(LAST, l2=10.0)]).fit(activations, labels).score(activations)
    torch.testing.assert_close(fused, alone, atol=1e-6, rtol=0)


def test_stacking_trusts_the_informative_reader_and_never_weighs_below_zero() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2 == 0
    sign = labels.double() * 2 - 1
    odds = torch.stack(
        [sign + torch.randn(200, generator=g), torch.randn(200, generator=g), -sign], 1
    )
    weights, _ = stack(odds.double().numpy(), labels)
    assert float(weights[0]) > float(weights[1])
    assert float(weights[2]) == 0.0
    assert bool((weights >= 0).all())


def test_fusion_reads_every_point_of_its_readers_once() -> None:
    fused = FusionProber([LinearProber(LAST), LayerAverageProber((EARLY, LAST)), NgramProber()])
    assert fused.points == (LAST, EARLY)


def test_ngrams_need_texts() -> None:
    activations, labels = make_acts(20)
    with pytest.raises(ActivationError, match="one text a request"):
        NgramProber().fit(Activations(activations.states, activations.masks), labels)


def test_ngrams_read_text_alone() -> None:
    activations, labels = make_acts(40)
    p = NgramProber(buckets=512).fit(Activations({}, {}, activations.texts), labels)
    scores = p.score(Activations({}, {}, ("Break that", "paint that", "")))
    assert float(scores[0]) > 0.6 > 0.4 > float(scores[1])


def test_sliding_mean_and_pooling_are_the_formulas_written_out() -> None:
    z = torch.tensor([1.0, 4.0, -2.0, 3.0])
    means = torch.tensor([2.5, 1.0, 0.5])
    expected = (torch.softmax(means / 0.7, 0) * means).sum()
    got = pool_tokens(z[None], torch.ones(1, 4, dtype=torch.bool), 2, 0.7)
    torch.testing.assert_close(got, expected[None])


def test_a_row_shorter_than_the_window_has_one_mean_of_all_its_tokens() -> None:
    mask = torch.tensor([[False, True, True]])
    means, there = sliding_mean(torch.tensor([[0.0, 1.0, 3.0]]), mask, 16)
    assert there.tolist() == [[False, False, True]]
    assert float(means[0, 2]) == pytest.approx(2.0)


@pytest.mark.parametrize("smooth", [1, 3, 16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_scores_as_it_does_alone(smooth: int, side: str) -> None:
    activations, labels = make_acts(60)
    p = WindowProber(WINDOW, smooth=smooth, epochs=5).fit(activations, labels)
    real = activations.masks[WINDOW][3]
    tokens = activations.at(WINDOW)[3][real]
    pad, n = torch.full((W, D), torch.nan), len(tokens)
    padded = torch.cat([pad, tokens] if side == "left" else [tokens, pad])
    mask = (torch.arange(W + n) >= W) if side == "left" else (torch.arange(W + n) < n)
    one = p.score(Activations({WINDOW: tokens[None]}, {WINDOW: torch.ones(1, n, dtype=torch.bool)}))
    two = p.score(Activations({WINDOW: padded[None]}, {WINDOW: mask[None]}))
    torch.testing.assert_close(two, one, atol=1e-6, rtol=0)
    torch.testing.assert_close(one, p.score(activations)[3:4], atol=1e-6, rtol=0)


def test_a_request_without_tokens_is_unreadable_and_cannot_be_fitted_on() -> None:
    activations, labels = make_acts(40)
    p = WindowProber(WINDOW, epochs=2).fit(activations, labels)
    mask = activations.masks[WINDOW].clone()
    mask[5] = False
    empty = Activations(activations.states, {WINDOW: mask}, activations.texts)
    assert torch.isnan(p.score(empty)).nonzero().flatten().tolist() == [5]
    with pytest.raises(ActivationError, match="without any token"):
        WindowProber(WINDOW).fit(empty, labels)


def test_window_states_need_their_mask() -> None:
    activations, labels = make_acts(20)
    with pytest.raises(ActivationError, match="mask"):
        WindowProber(WINDOW).fit(Activations(activations.states), labels)


def test_states_of_another_width_are_refused() -> None:
    p = LinearProber(LAST, l2=1.0).fit(*make_acts(20))
    with pytest.raises(ActivationError, match="12 wide"):
        p.score(Activations({LAST: torch.zeros(2, 13)}))


def test_a_configuration_reports_all_its_faults_at_once() -> None:
    spec = {
        "kind": "fusion",
        "weights": "best",
        "readers": [
            {"kind": "mlp", "point": "x@y", "recipe": "mine", "hidden": 0},
            {"kind": "svm"},
            {"kind": "layer_average", "points": [], "inner": "ngram"},
            {"kind": "ngram", "depth": 3},
            {"kind": "linear"},
        ],
    }
    with pytest.raises(SettingError) as caught:
        make_prober(spec)
    text = str(caught.value)
    parts = ("weights", "readers[0].point", "recipe", "hidden", "readers[1]: kind", "readers[2].points",
             "'depth'", "readers[4].point")  # fmt: skip
    assert all(part in text for part in parts), text


def test_a_setting_outside_its_limits_is_refused_by_fit() -> None:
    with pytest.raises(SettingError, match="hidden must be a whole number"):
        make_prober({"kind": "mlp", "point": "4", "hidden": 4}).__class__(LAST, hidden=0).fit(
            *make_acts(20)
        )
