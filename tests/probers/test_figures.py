"""Thresholds, calibration and metrics against closed formulas and simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from safeswitch.activations.states import Activations
from safeswitch.core.errors import DataError, FitError, SettingError
from safeswitch.probers.calibrate import conformal_threshold, log_odds, platt
from safeswitch.probers.leave_out import leave_one_out, split_out
from safeswitch.probers.linear import LinearProber
from safeswitch.probers.split import cluster_split, stratified_split
from safeswitch.statistics.prober_metrics import mean_metrics, measure
from tests.probers.made_states import LAST


def scored(n: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=g) > 0.6
    return torch.sigmoid(torch.randn(n, generator=g) + labels * 1.5).mul(50).round().div(50), labels


@pytest.mark.parametrize(
    ("n", "budget", "rank"),
    [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (699, 0.01, 693), (9, 0.1, 9)],
)
def test_the_conformal_threshold_is_the_stated_order_statistic(
    n: int, budget: float, rank: int
) -> None:
    threshold = conformal_threshold(
        torch.randperm(n, generator=torch.Generator().manual_seed(0)) / n, budget
    )
    assert threshold.rank == rank
    assert threshold.value == pytest.approx((rank - 1) / n)


@pytest.mark.parametrize(
    ("budget", "need"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.001, 999)]
)
def test_too_few_benign_prompts_are_refused_with_the_number_needed(
    budget: float, need: int
) -> None:
    with pytest.raises(FitError, match=f"at least {need} safe prompts; got {need - 1}"):
        conformal_threshold(torch.zeros(need - 1), budget)
    assert conformal_threshold(torch.zeros(need), budget).rank <= need


def test_the_conformal_bound_holds_over_draws_and_is_not_slack() -> None:
    g = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 121, generator=g)
    fired = [
        bool(draws[i, 120] > conformal_threshold(draws[i, :120], 0.05).value) for i in range(4000)
    ]
    rate, spread = sum(fired) / 4000, 3 * math.sqrt(0.05 * 0.95 / 4000)
    assert 0.05 - 1 / 121 - spread <= rate <= 0.05 + spread


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.9]), min_size=9, max_size=60))
def test_no_more_calibration_scores_than_the_budget_exceed_the_threshold(
    values: list[float],
) -> None:
    threshold = conformal_threshold(torch.tensor(values), 0.1)
    assert int(threshold.fires(torch.tensor(values)).sum()) <= 0.1 * (len(values) + 1)


def test_conformal_refuses_nan_and_silly_budgets() -> None:
    with pytest.raises(FitError, match="1 of 200 safe scores are NaN"):
        conformal_threshold(torch.cat([torch.zeros(199), torch.tensor([torch.nan])]))
    for budget in (0.0, 1.0, float("nan")):
        with pytest.raises(SettingError, match="budget"):
            conformal_threshold(torch.zeros(200), budget)


def test_a_threshold_states_its_promise_as_plain_json() -> None:
    row = json.loads(json.dumps(conformal_threshold(torch.rand(150)).to_dict()))
    assert "at most 0.01" in row["guarantee"]


def test_log_odds_are_finite_at_the_ends_and_keep_nan() -> None:
    odds = log_odds(torch.tensor([0.0, 0.25, 1.0, torch.nan]))
    assert odds[:3].isfinite().all()
    assert torch.isnan(odds[3])
    assert float(odds[1]) == pytest.approx(-math.log(3))


def expected_calibration_error(scores: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """``sum_b (n_b / n) * |mean label - mean score|`` over ``bins`` bins of equal width (Guo et al.
    2017)."""
    s, y = scores.double(), labels.double()
    index = (s * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, y - s)
    return float(gap.abs().sum() / len(s))


def test_platt_scaling_undoes_a_known_distortion() -> None:
    g = torch.Generator().manual_seed(0)
    true = torch.rand(4000, generator=g) * 0.98 + 0.01
    labels = torch.rand(4000, generator=g) < true
    distorted = torch.sigmoid(3 * log_odds(true) + 1).float()
    fixed = platt(distorted, labels).apply(distorted)
    assert (
        expected_calibration_error(fixed, labels)
        < 0.03
        < expected_calibration_error(distorted, labels)
    )


def test_calibration_error_is_the_formula_written_out() -> None:
    scores, labels = torch.tensor([0.01, 0.02, 0.5, 0.51, 0.99]), torch.tensor([0, 1, 1, 1, 1])
    expected = 2 / 5 * abs(0.5 - 0.015) + 2 / 5 * abs(1 - 0.505) + 1 / 5 * abs(1 - 0.99)
    assert expected_calibration_error(scores, labels) == pytest.approx(expected, abs=1e-6)
    assert measure(scores, labels, n_boot=10).ece.value == pytest.approx(expected, abs=1e-6)


def test_figures_agree_with_sklearn_ties_included() -> None:
    scores, labels = scored()
    m = measure(scores, labels, threshold=0.6, n_boot=50)
    fired = (scores > 0.6).numpy()
    assert m.auroc.value == pytest.approx(roc_auc_score(labels, scores))
    assert m.f1.value == pytest.approx(f1_score(labels, fired))
    assert m.accuracy.value == pytest.approx(float((fired == labels.numpy()).mean()))


def test_tpr_at_one_percent_lets_floor_of_one_percent_of_the_negatives_through() -> None:
    negatives, positives = torch.arange(250) / 1000, torch.tensor([0.2465, 0.2475, 0.2485, 0.2])
    m = measure(torch.cat([negatives, positives]), torch.arange(254) >= 250, n_boot=10)
    assert m.tpr_at_1_fpr.value == pytest.approx(
        2 / 4
    )  # .248 and .249 may exceed: the threshold is .247


@pytest.mark.parametrize("group", [1, 7])
def test_a_resample_has_the_figures_of_the_rows_it_repeats(group: int) -> None:
    from safeswitch.statistics import bootstrap

    scores, labels = (t.numpy() for t in scored(80))
    drawn = bootstrap.Resamples.draw(
        scores.astype(np.float64), labels, 5, 0, np.arange(80) // group
    )
    for b in range(1, 6):
        p = np.repeat(drawn.positives, drawn.positive_counts[b].astype(int))
        n = np.repeat(drawn.negatives, drawn.negative_counts[b].astype(int))
        y, s = np.r_[np.ones(len(p)), np.zeros(len(n))], np.r_[p, n]
        assert bootstrap.auroc(drawn)[b] == pytest.approx(roc_auc_score(y, s))
        assert bootstrap.f1_and_accuracy(drawn, 0.6)[0][b] == pytest.approx(f1_score(y, s > 0.6))
        threshold = min(t for t in n if (n > t).sum() <= int(0.1 * len(n)))
        assert bootstrap.tpr_at_fpr(drawn, 0.1)[b] == pytest.approx((p > threshold).mean())
        ece = expected_calibration_error(torch.from_numpy(s), torch.from_numpy(y))
        assert bootstrap.calibration_error(drawn, 15)[b] == pytest.approx(ece)


def test_variants_of_one_request_are_drawn_together() -> None:
    scores, labels = scored(200)
    alone = measure(scores, labels).auroc
    copies, truth = scores.repeat_interleave(5), labels.repeat_interleave(5)
    grouped = measure(copies, truth, groups=[str(i // 5) for i in range(1000)]).auroc
    assert grouped.value == pytest.approx(alone.value)
    assert (grouped.low, grouped.high) == pytest.approx(
        (alone.low, alone.high), abs=0.01
    )  # five copies tell no more than one
    flat = measure(copies, truth).auroc
    assert flat.high - flat.low < 0.6 * (alone.high - alone.low)
    assert measure(scores, labels, groups=range(200)).auroc == alone
    with pytest.raises(DataError, match="one group a score; got 3 for 200"):
        measure(scores, labels, groups="abc")


def test_intervals_are_seeded_hold_the_value_and_narrow_with_data() -> None:
    small, large = measure(*scored(200)), measure(*scored(3000))
    assert small == measure(*scored(200))
    assert small.auroc.low < small.auroc.value < small.auroc.high
    assert large.auroc.high - large.auroc.low < (small.auroc.high - small.auroc.low) / 2


def test_the_auroc_interval_covers_the_truth_about_as_often_as_promised() -> None:
    truth = 0.5 * (1 + math.erf(1 / 2))  # P(N(1, 1) > N(0, 1))
    g = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        labels = torch.arange(160) % 2 == 0
        found = measure(
            torch.sigmoid(torch.randn(160, generator=g) + labels), labels, n_boot=200
        ).auroc
        hits += found.low <= truth <= found.high
    assert 0.87 <= hits / 200 <= 0.99  # 0.92 to 0.945 over 600 draws


def test_metrics_refuse_nan_and_one_class() -> None:
    with pytest.raises(DataError, match="1 are NaN"):
        measure(torch.tensor([0.1, torch.nan]), torch.tensor([True, False]))
    with pytest.raises(DataError, match="both classes"):
        measure(torch.tensor([0.1, 0.2]), torch.tensor([True, True]))


def test_the_mean_of_equal_parts_keeps_the_value_and_narrows_the_interval() -> None:
    m = measure(*scored())
    mean = mean_metrics([m, m, m, m])
    assert mean.auroc.value == pytest.approx(m.auroc.value)
    assert mean.auroc.value - mean.auroc.low == pytest.approx((m.auroc.value - m.auroc.low) / 2)


def test_splits_are_disjoint_cover_all_rows_and_keep_clusters_whole() -> None:
    labels = torch.arange(50) % 5 == 0
    fit, held = stratified_split(labels, 0.2, 0)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(50))
    assert (int(labels[held].sum()), len(held)) == (2, 10)
    clusters = [str(i // 3) for i in range(50)]
    rare = torch.arange(50) // 3 % 5 == 0
    for seed in range(20):
        fit, held = cluster_split(clusters, rare, 0.2, seed)
        assert not {clusters[i] for i in fit} & {clusters[i] for i in held}
        assert 10 <= len(held) <= 14
        assert rare[held].any()
        assert rare[fit].any()


def test_a_group_of_one_class_is_completed_from_clusters_kept_out_of_the_fit() -> None:
    labels = torch.arange(60) % 2 == 0
    inside = labels & (torch.arange(60) < 20)
    clusters = [str(i // 2) for i in range(60)]
    fit, test = split_out(inside, labels, clusters, 0)
    assert not set(fit.tolist()) & set(test.tolist())
    added = [i for i in test.tolist() if not inside[i]]
    assert added
    assert not labels[added].any()
    assert not {clusters[i] for i in added} & {clusters[i] for i in fit.tolist()}


def test_leaving_out_a_source_that_differs_shows_what_a_mixed_split_hides() -> None:
    labels = torch.arange(160) % 2 == 0
    source = ["a" if i % 4 < 2 else "b" for i in range(160)]
    states = torch.randn(160, 6, generator=torch.Generator().manual_seed(0))
    for i, name in enumerate(source):  # each source tells its classes apart along another feature
        states[i, 0 if name == "a" else 1] += 5.0 if labels[i] else -5.0
    activations = Activations({LAST: states})
    found = leave_one_out(
        lambda: LinearProber(LAST, l2=10.0), activations, labels, source, seed=0, n_boot=20
    )
    assert set(found) == {"a", "b", "in_distribution", "headline"}
    assert found["in_distribution"].auroc.value > found["headline"].auroc.value + 0.1
    assert found["headline"].auroc.value == pytest.approx(
        (found["a"].auroc.value + found["b"].auroc.value) / 2
    )
    with pytest.raises(DataError, match="names other than"):
        leave_one_out(lambda: LinearProber(LAST), activations, labels, ["headline"] * 160, seed=0)
