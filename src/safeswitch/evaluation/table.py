"""Tables of rates with intervals, as Markdown. Knows nothing of files or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safeswitch.core.errors import DataError
from safeswitch.evaluation.intervals import Rate
from safeswitch.evaluation.suites import Result


def percent(rate: Rate) -> str:
    """``12.3 (9.1-16.4)``: rate and 95 % interval in per cent."""
    return f"{100 * rate.rate:.1f} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def rates_table(results: Mapping[str, Mapping[str, Result]], titles: Mapping[str, str] | None = None) -> str:
    """One row a suite, one column a method; per cent with 95 % Wilson intervals.

    Raises:
        DataError: no results.
    """
    if not results:
        raise DataError("rates_table: there are no results to show")
    names = titles or {}
    methods: Sequence[str] = list(next(iter(results.values())))
    lines = [
        "| requests | n | measured | " + " | ".join(names.get(m, m) for m in methods) + " |",
        "|---|---|---|" + "---|" * len(methods),
    ]
    for suite, row in results.items():
        first = next(iter(row.values()))
        cells = " | ".join(percent(row[m].rate) for m in methods)
        lines.append(f"| {names.get(suite, suite)} | {first.rate.n} | {first.suite.metric} | {cells} |")
    return "\n".join(lines) + "\n"
