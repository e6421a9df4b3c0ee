"""Intervals and tests against closed formulas, benchmarks through the scripted engine, table and
picture."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest

from safeswitch.bench.log import LoggedRows
from safeswitch.bench.metrics import HARM, outcomes
from safeswitch.bench.picture import draw_rates
from safeswitch.bench.table import rates_table
from safeswitch.bench.tables import main_rates
from safeswitch.core.errors import ArtifactError, DataError
from safeswitch.statistics.intervals import mcnemar, wilson
from tests.bench.made import Scripted, asked, loaded, odd, run


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (7, 1000)]
)
def test_wilson_is_that_of_scipy(hits: int, n: int) -> None:
    rate, expected = (
        wilson(hits, n),
        binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson"),
    )
    assert (rate.rate, rate.n) == (hits / n, n)
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_mean_of_runs_has_an_interval_between_those_of_its_neighbours() -> None:
    below, mean, above = (wilson(h, 50) for h in (3, 3.4, 4))
    assert below.low < mean.low < above.low
    assert below.high < mean.high < above.high


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(hits: int, n: int) -> None:
    with pytest.raises(DataError, match=f"got hits={hits}, n={n}"):
        wilson(hits, n)


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (1, 0), (5, 0), (7, 2), (2, 7), (4, 4), (30, 11)]
)
def test_mcnemar_is_the_exact_binomial_enumerated(only_first: int, only_second: int) -> None:
    first = [True] * only_first + [False] * only_second + [True, False] * 3
    second = [False] * only_first + [True] * only_second + [True, False] * 3
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_refuses_outcomes_of_other_requests() -> None:
    with pytest.raises(DataError, match="2 outcomes against 1"):
        mcnemar([True, False], [True])


def test_every_switch_runs_on_every_benchmark_greedily_and_is_judged_request_by_request(
    tmp_path: Path,
) -> None:
    engine = Scripted(unsafe=odd)
    log = run(
        tmp_path, [loaded("a", asked("a", 4)), loaded("b", asked("b", 3), max_new_tokens=7)], engine
    )
    assert (log.methods, log.benchmarks) == (("base", "prompt"), ("a", "b"))
    assert list(outcomes(log.rows("prompt", "a"), "rules", HARM).values()) == [
        True,
        False,
        True,
        False,
    ]
    assert list(outcomes(log.rows("prompt", "b"), "rules", HARM).values()) == [True, False, True]
    assert all(outcomes(log.rows("base", "a"), "rules", HARM).values())
    given = [{k: v for k, v in options.items() if k != "seed"} for _, options in engine.calls]
    assert given == [{"max_new_tokens": n, "do_sample": False} for n in (256, 7, 256, 7)]


def test_the_table_has_a_row_a_benchmark_and_a_column_a_method(tmp_path: Path) -> None:
    log = run(tmp_path, [loaded(name, asked(name, 4)) for name in "ab"], Scripted(unsafe=odd))
    always, half = "100.0 (51.0–100.0)", "50.0 (15.0–85.0)"
    assert rates_table(
        main_rates(LoggedRows(log)), log.methods, {"a": "First", "prompt": "Safety prompt"}
    ) == (
        "| requests | n | measured | base | Safety prompt |\n"
        "|---|---|---|---|---|\n"
        f"| First | 4 | harmful compliance | {always} | {half} |\n"
        f"| b | 4 | harmful compliance | {always} | {half} |\n"
    )


def test_the_table_has_a_row_a_method_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safeswitch.bench.table.FEW", 1)
    log = run(tmp_path, [loaded("a", asked("a", 4))], Scripted(unsafe=odd))
    assert rates_table(main_rates(LoggedRows(log)), log.methods, {"a": "First"}) == (
        "| method | First: harmful compliance (n = 4) |\n"
        "|---|---|\n"
        "| base | 100.0 (51.0–100.0) |\n"
        "| prompt | 50.0 (15.0–85.0) |\n"
    )


@pytest.mark.parametrize(("suites", "columns", "size"), [(1, 4, (4, 1)), (5, 2, (2, 3))])
def test_the_picture_has_the_size_of_its_panels(
    suites: int, columns: int, size: tuple[int, int], tmp_path: Path
) -> None:
    chosen = [loaded(f"s{i}", asked("s", 4)) for i in range(suites)]
    rates = main_rates(LoggedRows(run(tmp_path, chosen, Scripted(unsafe=odd))))
    draw_rates(rates, tmp_path / "deep" / "picture.png", titles={"s0": "One"}, columns=columns)
    with Image.open(tmp_path / "deep" / "picture.png") as image:
        assert image.format == "PNG"
        assert image.size == pytest.approx((3.4 * size[0] * 110, 3.3 * size[1] * 110), abs=1)
        assert len(image.convert("L").getcolors(256) or []) > 10


def test_a_picture_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rates = main_rates(LoggedRows(run(tmp_path / "run", [loaded("a", asked("a", 2))], Scripted())))
    with pytest.raises(ArtifactError, match="cannot write"):
        draw_rates(rates, tmp_path / "file" / "picture.png")


def test_nothing_measured_is_told_by_table_and_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results"):
        rates_table([], [])
    with pytest.raises(DataError, match="no results"):
        draw_rates([], tmp_path / "x.png")
