"""Intervals and tests against closed formulas, suites through the scripted engine, table and picture."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest

from safeswitch.core.errors import ArtifactError, DataError
from safeswitch.core.types import Example, Message
from safeswitch.engines.mock import MockEngine
from safeswitch.evaluation.intervals import mcnemar, wilson
from safeswitch.evaluation.picture import draw_rates
from safeswitch.evaluation.suites import Suite, run_suite, run_suites
from safeswitch.evaluation.table import percent, rates_table
from safeswitch.switch.actuators import NoAction, SystemPrompt
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (7, 1000)])
def test_wilson_is_that_of_scipy(hits: int, n: int) -> None:
    rate, expected = wilson(hits, n), binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
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


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 0), (7, 2), (2, 7), (4, 4), (30, 11)])
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


def suite(name: str, n: int) -> Suite:
    examples = tuple(Example(f"{name}{i}", (Message("user", f"{name} {i}"),), "unsafe") for i in range(n))
    return Suite(name, "harmful compliance", examples, lambda e, text: text.startswith("You said"))


SWITCHES = {"base": Switch(Gate(), NoAction()), "prompt": Switch(Gate(always=True), SystemPrompt("Careful."))}


def odd(text: str) -> bool:
    return int(text.split()[-1]) % 2 == 1


def test_every_switch_runs_on_every_suite_greedily_and_is_judged_request_by_request() -> None:
    engine = MockEngine(unsafe=odd)
    seen: list[tuple[str, str]] = []
    results = run_suites(
        engine, [suite("a", 4), suite("b", 3)], SWITCHES, max_new_tokens=5, progress=lambda s, m: seen.append((s, m))
    )
    assert results["a"]["prompt"].hits == (True, False, True, False)
    assert results["b"]["prompt"].hits == (True, False, True)
    assert seen == [("a", "base"), ("a", "prompt"), ("b", "base"), ("b", "prompt")]
    assert all(options == {"max_new_tokens": 5, "do_sample": False} for _, options in engine.calls)
    assert results["a"]["prompt"].fired == wilson(2, 4)


def test_options_of_a_run_reach_the_engine() -> None:
    engine = MockEngine()
    run_suite(engine, suite("a", 2), None, max_new_tokens=5, stop_strings=["x"])
    assert engine.calls[0] == (("a 0", "a 1"), {"max_new_tokens": 5, "do_sample": False, "stop_strings": ["x"]})


def test_the_table_has_a_row_a_suite_and_a_column_a_method() -> None:
    engine = MockEngine(unsafe=odd)
    results = {
        s.name: {m: run_suite(engine, s, w, max_new_tokens=5) for m, w in (("base", None), ("prompt", SWITCHES["prompt"]))}
        for s in (suite("a", 4), suite("b", 4))
    }
    always, half = percent(wilson(4, 4)), percent(wilson(2, 4))
    assert half == "50.0 (15.0–85.0)"
    assert rates_table(results, {"a": "First", "prompt": "Safety prompt"}) == (
        "| requests | n | measured | base | Safety prompt |\n"
        "|---|---|---|---|---|\n"
        f"| First | 4 | harmful compliance | {always} | {half} |\n"
        f"| b | 4 | harmful compliance | {always} | {half} |\n"
    )


@pytest.mark.parametrize(("suites", "columns", "size"), [(1, 4, (4, 1)), (5, 2, (2, 3))])
def test_the_picture_has_the_size_of_its_panels(suites: int, columns: int, size: tuple[int, int], tmp_path: Path) -> None:
    chosen = [suite(f"s{i}", 4) for i in range(suites)]
    results = run_suites(MockEngine(unsafe=odd), chosen, SWITCHES, max_new_tokens=5)
    draw_rates(results, tmp_path / "deep" / "picture.png", titles={"s0": "One"}, columns=columns)
    with Image.open(tmp_path / "deep" / "picture.png") as image:
        assert image.format == "PNG"
        assert image.size == pytest.approx((3.4 * size[0] * 110, 3.3 * size[1] * 110), abs=1)
        assert len(image.convert("L").getcolors(256) or []) > 10


def test_a_picture_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results = run_suites(MockEngine(), [suite("a", 2)], SWITCHES, max_new_tokens=5)
    with pytest.raises(ArtifactError, match="cannot write"):
        draw_rates(results, tmp_path / "file" / "picture.png")


def test_nothing_measured_is_told_by_table_and_picture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results"):
        rates_table({})
    with pytest.raises(DataError, match="no results"):
        draw_rates({}, tmp_path / "x.png")
