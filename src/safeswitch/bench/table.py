"""The one table that people look at first: a row a benchmark and metric, a column a method; the
other way round where there are many methods. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safeswitch.bench.estimates import Table
from safeswitch.core.errors import DataError

NAMES: Mapping[str, str] = {}
FEW = 8
"""Methods that a table has room for side by side, and a picture marks for."""


def percent(value: float, low: float, high: float) -> str:
    """``12.3 (9.1-16.4)``: rate and 95 % interval in per cent."""
    return f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def rates_table(rates: Table, methods: Sequence[str], titles: Mapping[str, str] = NAMES) -> str:
    """Markdown: per cent with 95 % intervals.

    Args:
        rates: Rows as of :func:`safeswitch.bench.tables.main_rates`.
        methods: In order.
        titles: What benchmarks and methods are called, where not by their names.

    Raises:
        DataError: no rates.
    """
    if not rates:
        raise DataError("rates_table: there are no results to show")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for row in rates:
        place = row["benchmark"], row["metric"]
        cells.setdefault(place, {})[row["method"]] = percent(row["value"], row["low"], row["high"])
        counts[place] = max(counts.get(place, 0), row["n"])
    places = [
        [titles.get(benchmark, benchmark), str(counts[benchmark, metric]), metric]
        for benchmark, metric in cells
    ]
    figures: list[list[str]] = []
    for found in cells.values():
        figures.append([found.get(method, "") for method in methods])
    names = [titles.get(m, m) for m in methods]
    if len(methods) <= max(FEW, len(places)):
        return _markdown(
            ["requests", "n", "measured", *names],
            [p + f for p, f in zip(places, figures, strict=True)],
        )
    heads = ["method", *(f"{requests}: {metric} (n = {n})" for requests, n, metric in places)]
    return _markdown(heads, [list(row) for row in zip(names, *figures, strict=True)])


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(
        f"| {' | '.join(line)} |\n" if line[0] != "---" else f"|{'|'.join(line)}|\n"
        for line in lines
    )
