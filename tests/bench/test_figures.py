"""Every figure of the tables against scikit-learn, statsmodels, scipy or a count by hand."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from safeswitch.bench.bench import _with_length
from safeswitch.bench.gate_tables import gate_table, prober_table
from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.metrics import (
    ACCURACY,
    HARM,
    INFORMATIVE,
    METRICS,
    NEITHER,
    OVER_REFUSAL,
    metric,
    outcomes,
)
from safeswitch.bench.outputs import write_tables
from safeswitch.bench.pareto import front, marked
from safeswitch.bench.record_tables import cost_table, not_taken
from safeswitch.bench.tables import (
    make_tables,
    paired,
    rates,
    sliced,
    two_sided,
)
from safeswitch.bench.verdict import Verdict
from safeswitch.core.errors import ContextLengthError, DataError
from safeswitch.core.types import Decision, Example, Message, Reply
from safeswitch.statistics.intervals import (
    Interval,
    bootstrap_mean,
    clustered,
    holm,
    mcnemar,
    paired_difference,
    weighted_mean,
    wilson,
)
from tests.bench.made import SWITCHES, Scripted, asked, loaded, logged, odd, run


def test_holm_is_that_of_statsmodels() -> None:
    rng = random.Random(0)
    for n in (1, 2, 7, 20):
        p = [rng.random() ** 3 for _ in range(n)]
        assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))


def test_the_bootstrap_of_a_mean_is_that_of_scipy_up_to_chance() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=80).tolist()
    found = bootstrap_mean(values, n_boot=9000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9000, rng=2
    ).confidence_interval
    assert (found.value, found.n) == (pytest.approx(np.mean(values)), 80)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_a_paired_difference_is_narrower_than_that_of_two_samples_and_needs_the_same_requests() -> (
    None
):
    base = [i % 2 == 0 for i in range(100)]
    better = [hit and i % 10 != 0 for i, hit in enumerate(base)]
    found = paired_difference(better, base)
    assert found.value == pytest.approx(-0.1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.3 / 10, abs=0.02)
    with pytest.raises(DataError, match="100 values against 1"):
        paired_difference(better, [True])


GROUPED = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1]  # hits of eleven variants
VARIANTS = ["a", "a", "a", "a", "b", "b", "c", "c", "d", "d", "e"]  # of five requests
OTHER = [0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0]


def test_a_share_of_variants_has_the_design_effect_of_statsmodels() -> None:
    hits = [bool(hit) for hit in GROUPED]
    model = OLS(np.array(GROUPED, dtype=float), np.ones(11))
    by_group = (
        model.fit(
            cov_type="cluster", cov_kwds={"groups": pd.factorize(pd.Series(VARIANTS))[0]}
        ).bse[0]
        ** 2
    )
    effect = by_group / model.fit().bse[0] ** 2
    assert effect > 1.2
    found = clustered(hits, VARIANTS)
    assert (found.rate, found.n) == (pytest.approx(6 / 11), 11)
    rivals = proportion_confint(6 / effect, 11 / effect, method="wilson")
    assert (found.low, found.high) == pytest.approx(rivals)


def test_variants_that_tell_nothing_new_count_as_one_request_and_single_ones_each() -> None:
    rng = random.Random(4)
    requests = [rng.random() < 0.3 for _ in range(40)]
    alone = clustered(requests, range(40))
    assert alone == wilson(sum(requests), 40)
    assert clustered(requests, None) == alone
    five = clustered(
        [hit for hit in requests for _ in range(5)], [i for i in range(40) for _ in range(5)]
    )
    assert (five.low, five.high) == pytest.approx((alone.low, alone.high), abs=0.004)
    none = clustered([False] * 200, [i for i in range(40) for _ in range(5)])
    assert (none.low, none.high) == pytest.approx((0.0, wilson(0, 40).high))
    with pytest.raises(DataError, match="got 2 values and 1 groups"):
        clustered([True, False], ["a"])


def test_a_paired_difference_draws_groups_as_a_whole() -> None:
    apart = [a - b for a, b in zip(GROUPED, OTHER, strict=True)]
    sums = [sum(d for d, g in zip(apart, VARIANTS, strict=True) if g == name) for name in "abcde"]
    sizes = [VARIANTS.count(name) for name in "abcde"]
    every = [
        sum(sums[i] for i in drawn) / sum(sizes[i] for i in drawn)
        for drawn in itertools.product(range(5), repeat=5)
    ]  # each of the 3125 resamples is as likely as any other
    found = paired_difference(GROUPED, OTHER, VARIANTS, n_boot=60_000)
    assert found.value == pytest.approx(3 / 11)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(every, [0.025, 0.975])), abs=0.01
    )
    assert found.high - found.low > 1.2 * (np.diff(np.quantile(_drawn(apart), [0.025, 0.975]))[0])


def _drawn(values: list[int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).choice(values, (9000, len(values))).mean(1)


def test_the_test_of_grouped_pairs_counts_all_signs_and_without_groups_is_mcnemars() -> None:
    apart = [a - b for a, b in zip(GROUPED, OTHER, strict=True)]
    sums = [sum(d for d, g in zip(apart, VARIANTS, strict=True) if g == name) for name in "abcde"]
    signs = list(itertools.product((1, -1), repeat=5))
    far = sum(
        abs(sum(s * d for s, d in zip(sign, sums, strict=True))) >= abs(sum(sums)) for sign in signs
    )
    first, second = [bool(x) for x in GROUPED], [bool(x) for x in OTHER]
    found = mcnemar(first, second, VARIANTS)
    assert found.p_value == pytest.approx(far / 32)
    assert (found.only_first, found.only_second) == (4, 1)
    plain = their_mcnemar([[2, 4], [1, 4]], exact=True).pvalue
    assert (
        mcnemar(first, second).p_value
        == mcnemar(first, second, range(11)).p_value
        == pytest.approx(plain)
    )
    many = mcnemar([True] * 400 + [False] * 30, [False] * 300 + [True] * 130)
    assert many.p_value == pytest.approx(stats.binomtest(30, 330).pvalue)


def test_a_weighted_mean_is_the_sum_with_the_spread_of_both() -> None:
    one, other = (Interval(r.rate, r.low, r.high, r.n) for r in (wilson(30, 100), wilson(10, 200)))
    found = weighted_mean([(0.45, one), (0.55, other)])
    spread = (0.45**2 * 0.3 * 0.7 / 100 + 0.55**2 * 0.05 * 0.95 / 200) ** 0.5
    assert found.value == pytest.approx(0.45 * 0.3 + 0.55 * 0.05)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * spread, found.value + 1.96 * spread), abs=0.01
    )
    assert found.n == 300
    none = Interval(0.0, 0.0, wilson(0, 50).high, 50)
    assert weighted_mean([(0.5, none), (0.5, none)]).high == pytest.approx(none.high / 2**0.5)
    with pytest.raises(DataError, match="at least one figure"):
        weighted_mean([])


def test_what_each_metric_counts() -> None:
    unsafe, safe = asked("u", 1)[0], asked("s", 1, "safe")[0]
    refusal, help_ = (
        Verdict(refused=True, complied=False, explained=True),
        Verdict(refused=False, complied=True),
    )
    broken, right = Verdict(refused=False, complied=False), Verdict(refused=False, correct=True)
    rows = [logged(unsafe, "x", j=v) for v in (refusal, help_, broken)]
    counted = {m.name: [list(outcomes([row], "j", m).values()) for row in rows] for m in METRICS}
    assert counted[HARM.name] == [[False], [True], [False]]
    assert counted[NEITHER.name] == [[False], [False], [True]]
    assert counted[INFORMATIVE.name] == [[True], [], []]
    assert counted[OVER_REFUSAL.name] == counted[ACCURACY.name] == [[], [], []]
    assert outcomes([logged(safe, "x", j=refusal)], "j", OVER_REFUSAL) == {"s0": True}
    assert outcomes([logged(safe, "x", j=right)], "j", ACCURACY) == {"s0": True}
    assert outcomes([logged(safe, "x", j=right)], "other", ACCURACY) == {}
    assert metric("accuracy") is ACCURACY


@pytest.fixture
def rows(tmp_path: Path) -> LoggedRows:
    """Twelve unsafe and nine safe requests; the gate fires on odd numbers."""
    unsafe = [
        e
        for i in range(3)
        for e in asked(
            f"u{'abc'[i]}", 4, category="abc"[i], wrapper="w" if i else "", meta={"lang": "en"}
        )
    ]
    given = [loaded("unsafe", unsafe), loaded("safe", asked("s", 9, "safe", meta={"lang": "zh"}))]
    return LoggedRows(run(tmp_path, given, Scripted(unsafe=odd)))


def pick(table: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in table if all(row.get(k) == v for k, v in wanted.items())]


def test_rates_have_the_wilson_interval_of_statsmodels(rows: LoggedRows) -> None:
    (row,) = pick(rates(rows), benchmark="unsafe", method="prompt", metric="harmful compliance")
    assert (row["value"], row["n"], row["better"]) == (0.5, 12, "lower")
    assert (row["low"], row["high"]) == pytest.approx(proportion_confint(6, 12, method="wilson"))
    (row,) = pick(rates(rows), benchmark="safe", method="prompt", metric="over-refusal")
    assert row["value"] == pytest.approx(4 / 9)


def test_the_two_sided_table_pools_all_safety_benchmarks(rows: LoggedRows) -> None:
    table = two_sided(rows)
    assert [(r["method"], r["metric"], r["value"], r["n"]) for r in table] == [
        ("base", "unsafe on unsafe", 1.0, 12),
        ("base", "abstain on safe", 0.0, 9),
        ("prompt", "unsafe on unsafe", 0.5, 12),
        ("prompt", "abstain on safe", pytest.approx(4 / 9), 9),
    ]


def test_paired_tests_are_mcnemars_with_holms_correction_over_the_table(rows: LoggedRows) -> None:
    table = paired(rows)
    (harm,) = pick(table, benchmark="unsafe")
    assert (harm["method"], harm["against"], harm["value"]) == ("prompt", "base", -0.5)
    assert (harm["only_method"], harm["only_against"]) == (0, 6)
    assert harm["p"] == pytest.approx(their_mcnemar([[6, 0], [6, 0]], exact=True).pvalue)
    (safe,) = pick(table, benchmark="safe")
    assert [harm["p_holm"], safe["p_holm"]] == pytest.approx(
        list(multipletests([harm["p"], safe["p"]], method="holm")[1])
    )


def test_slices_are_those_of_the_requests_and_one_value_alone_makes_none(rows: LoggedRows) -> None:
    table = sliced(rows, "category")
    assert [(r["category"], r["value"], r["n"]) for r in pick(table, method="prompt")] == [
        ("a", 0.5, 4),
        ("b", 0.5, 4),
        ("c", 0.5, 4),
    ]
    assert sliced(rows, "language") == []
    assert "category" in make_tables(rows)


def test_requests_are_told_apart_by_length_and_by_their_place_in_a_context(tmp_path: Path) -> None:
    texts = {"short": "u 1", "edge": "u 1".rjust(80, "x"), "longer": "u 1".rjust(81, "x")}
    unsafe = [
        Example(name, (Message("user", text),), "unsafe", meta={"place": place})
        for (name, text), place in zip(texts.items(), ("middle", "behind", "before"), strict=True)
    ]
    made = LoggedRows(run(tmp_path, [loaded("unsafe", unsafe)], Scripted()))
    lengths = pick(sliced(made, "length"), method="base")
    assert [(r["length"], r["n"]) for r in lengths] == [
        ("to 80 characters", 2),
        ("81 to 400 characters", 1),
    ]
    places = pick(sliced(made, "position"), method="base")
    assert [r["position"] for r in places] == ["before", "middle", "behind"]


def test_the_gate_table_counts_firings_by_label_and_stage(rows: LoggedRows) -> None:
    (row,) = pick(gate_table(rows), benchmark="unsafe", method="prompt")
    assert (row["value"], row["n"], row["stages"]) == (0.5, 12, "stage1 6")
    (row,) = pick(gate_table(rows), benchmark="safe", method="base")
    assert (row["value"], row["stages"]) == (0.0, "")


def test_cost_is_the_mean_a_request_and_its_difference_to_the_untouched_model(
    rows: LoggedRows,
) -> None:
    table = cost_table(rows)
    (base,) = pick(table, benchmark="unsafe", method="base", metric="reply tokens made")
    (prompt,) = pick(table, benchmark="unsafe", method="prompt", metric="reply tokens made")
    assert (base["value"], base["extra"]) == (4.0, None)  # "You said: ua 1"
    assert prompt["value"] == pytest.approx(
        (6 * 4 + 6 * 5) / 12
    )  # half of them "I can't help with that."
    assert prompt["extra"] == pytest.approx(0.5)
    assert (base["extra_low"], base["extra_high"]) == (None, None)
    lows = [row["extra_low"] for row in pick(table, method="prompt", metric="reply tokens made")]
    assert all(low is not None for low in lows)
    assert (prompt["extra_low"], prompt["extra_high"]) == (
        0.5,
        0.5,
    )  # the same in each group of requests


class Scores(Scripted):
    """Gives every request a score drawn by its text, higher for the unsafe."""

    def generate(self, prompts: Any, switch: Any = None, **options: Any) -> list[Reply]:
        replies = []
        for e in prompts:
            rng = random.Random(e.id)
            score = min(1.0, max(0.0, rng.gauss(0.65 if e.unsafe else 0.4, 0.2)))
            replies.append(
                Reply("ok", (1,), "stop", Decision(score > 0.5, "stage1", {"stage1": score}), 1)
            )
        return replies


def test_prober_figures_are_those_of_scikit_learn(tmp_path: Path) -> None:
    examples = [*asked("u", 60), *asked("s", 200, "safe")]
    rows = LoggedRows(
        run(tmp_path, [loaded("both", examples)], Scores(), {"base": SWITCHES["base"]})
    )
    table = prober_table(rows)
    logged_rows = rows.of("base", "both")
    truth = [row.example.unsafe for row in logged_rows]
    scores = [row.decision["scores"]["stage1"] for row in logged_rows]
    figures = {row["metric"]: row for row in pick(table, benchmark="both")}
    assert figures["AUROC"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert figures["Brier score"]["value"] == pytest.approx(brier_score_loss(truth, scores))
    rates_fp, rates_tp, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert figures["TPR at 1 % FPR"]["value"] == pytest.approx(max(rates_tp[rates_fp <= 0.01]))
    assert all(row["low"] <= row["value"] <= row["high"] for row in figures.values())
    assert {row["benchmark"] for row in table} == {"both", "all"}


def test_of_many_methods_the_known_ones_and_those_on_a_front_have_marks() -> None:
    many = [*"abcdefgh", "base", "safeswitch"]
    assert marked(many, [["c"], ["safeswitch", "g"]]) == ["c", "g", "base", "safeswitch"]
    assert marked(many[:8], [[]]) == many[:8]


def test_the_front_holds_what_no_other_point_beats() -> None:
    points = {"a": (0.1, 0.9), "b": (0.2, 0.5), "c": (0.3, 0.5), "d": (0.6, 0.1), "e": (0.7, 0.7)}
    assert front(points) == ["a", "b", "d"]


def test_requests_that_were_not_taken_are_told_and_count_in_no_rate(tmp_path: Path) -> None:
    class Short(Scripted):
        def generate(self, prompts: Any, switch: Any = None, **options: Any) -> list[Reply]:
            if any(e.id == "a1" for e in prompts):
                raise ContextLengthError("too long")
            return super().generate(prompts, switch, **options)

    run(tmp_path, [loaded("a", asked("a", 3))], Short(), {"base": SWITCHES["base"]})
    rows = LoggedRows(RunLog.open(tmp_path))
    (row,) = not_taken(rows)
    assert (row["requests"], row["of"], row["first reason"]) == (
        1,
        3,
        "ContextLengthError: 'a1': too long",
    )
    assert {r["n"] for r in rates(rows)} == {2}
    write_tables(tmp_path)
    assert "NOT TAKEN: 1 of 3 requests of a by base" in (tmp_path / "table.md").read_text()


def test_replies_leave_half_of_a_small_context_to_the_prompt() -> None:
    one = loaded("a", asked("a", 1), max_new_tokens=512)
    lengths = [
        _with_length(one, *given).benchmark.max_new_tokens
        for given in ((None, None), (None, 512), (64, 512), (900, 4096))
    ]
    assert lengths == [512, 256, 64, 900]


def test_tables_count_variants_of_one_request_as_a_group(tmp_path: Path) -> None:
    variants = [replace(e, group=f"g{i // 4}") for i, e in enumerate(asked("v", 16))]
    fires = {
        "v 0",
        "v 1",
        "v 2",
        "v 3",
        "v 4",
        "v 5",
        "v 6",
        "v 7",
        "v 8",
    }  # all of two groups and one of a third
    rows = LoggedRows(
        run(tmp_path, [loaded("vary", variants)], Scripted(unsafe=fires.__contains__))
    )
    expected = clustered([i > 8 for i in range(16)], [i // 4 for i in range(16)])
    assert expected.high - expected.low > 1.3 * (wilson(7, 16).high - wilson(7, 16).low)
    (rate,) = pick(rates(rows), method="prompt", metric="harmful compliance")
    (both,) = pick(two_sided(rows), method="prompt")
    (fired,) = pick(gate_table(rows), method="prompt")
    for row in (rate, both):
        assert (row["value"], row["low"], row["high"], row["n"]) == (
            7 / 16,
            expected.low,
            expected.high,
            16,
        )
    assert (fired["low"], fired["high"]) == pytest.approx((1 - expected.high, 1 - expected.low))
    (pair,) = paired(rows)
    assert pair["p"] == 2 / 2**3  # three groups differ, all in one direction
    assert pair["value"] == -9 / 16
    assert (pair["low"], pair["high"]) == (-1.0, pytest.approx(-0.0625, abs=0.07))
