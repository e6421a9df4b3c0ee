"""The one table that people look at first: a row a benchmark and metric, a column a method. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safeswitch.core.errors import DataError
from safeswitch.evaluation.tables import Table

NAMES: Mapping[str, str] = {}


def percent(value: float, low: float, high: float) -> str:
    """``12.3 (9.1-16.4)``: rate and 95 % interval in per cent."""
    return f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def rates_table(rates: Table, methods: Sequence[str], titles: Mapping[str, str] = NAMES) -> str:
    """Markdown: per cent with 95 % intervals.

    Args:
        rates: Rows as of :func:`safeswitch.evaluation.tables.main_rates`.
        methods: Columns.
        titles: What benchmarks and methods are called, where not by their names.

    Raises:
        DataError: no rates.
    """
    if not rates:
        raise DataError("rates_table: there are no results to show")
    lines = [
        "| requests | n | measured | " + " | ".join(titles.get(m, m) for m in methods) + " |",
        "|---|---|---|" + "---|" * len(methods),
    ]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for row in rates:
        place = row["benchmark"], row["metric"]
        cells.setdefault(place, {})[row["method"]] = percent(row["value"], row["low"], row["high"])
        counts[place] = max(counts.get(place, 0), row["n"])
    for (benchmark, metric), found in cells.items():
        figures = " | ".join(found.get(m, "") for m in methods)
        lines.append(f"| {titles.get(benchmark, benchmark)} | {counts[benchmark, metric]} | {metric} | {figures} |")
    return "\n".join(lines) + "\n"
