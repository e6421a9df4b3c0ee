"""Tables of a run as files, from its log alone: a CSV and a Markdown file of every table, and
``figures.json``.

Knows nothing of models.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from safeswitch.bench.estimates import Table
from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.record_tables import judges_table, not_judged, not_taken
from safeswitch.bench.slices import BY
from safeswitch.bench.table import rates_table
from safeswitch.bench.tables import main_rates, make_tables
from safeswitch.core.artifact import write_json, write_text
from safeswitch.core.json_types import JsonObject

_FRACTIONS = (
    "harmful",
    "over-refusal",
    "accuracy",
    "informative",
    "neither",
    "unsafe on",
    "abstain",
    "fired",
    "attack success",
    "per form",
    "win rate",
    "on topic",
    "gate recall",
    "stage1 recall",
    "missed",
    "false trigger",
    "explained",
    "fewer than",
)
_HOLM = (
    "Differences are the method's rate less the other's, on the same requests, with a 95 % "
    "interval from 2,000 paired resamples; p is McNemar's exact test; variants of one request are "
    "drawn, and exchanged, as a group. p_holm is corrected for all tests of this table (Holm "
    "1979); p alone is not."
)
NOTES = {
    "paired": _HOLM,
    "rates": (
        "95 % intervals: Wilson's for fractions, at the effective number of requests where variants "
        "of one stand in groups; a mix adds the distances to the limits of its parts in squares "
        "(Zou and Donner 2008)."
    ),
    "two_sided": "All safety benchmarks of the suite together; SODE's pair (arXiv 2401.00287).",
    **dict.fromkeys(BY, "Slices are many and small: intervals are not corrected for their number."),
    "attacks": (
        "Attack none: the bare requests. A prober is a tripwire, not a wall: a search that looks "
        "into it (gcg-prober) shows how far its recall can be pushed down by somebody who holds "
        "the weights. Forms of one request count as a group, so that intervals are as wide as the "
        "requests are few."
    ),
    "wins": (
        "Both orders of the two replies are judged; ties, and preferences that follow the order, "
        "count half."
    ),
    "cost": (
        "Means a request; extra is the mean difference to the untouched model on the same "
        "requests, with its 95 % interval."
    ),
    "left_out": "Stage 1 on what it was not fitted on, as measured when the switch was fitted.",
}


def write_tables(folder: Path) -> None:
    """``table.md`` (the first to look at), ``tables/<name>.csv`` and ``.md``, and ``figures.json``.

    Raises:
        ArtifactError: no run there, or the folder cannot be written.
    """
    log = RunLog.open(folder)
    rows = LoggedRows(log)
    tables = make_tables(rows)
    main = main_rates(rows)
    write_text(
        folder / "table.md",
        "\n".join([*([rates_table(main, log.methods)] if main else []), *remarks(rows)]),
    )
    for name, table in tables.items():
        write_text(folder / "tables" / f"{name}.csv", as_csv(table))
        write_text(folder / "tables" / f"{name}.md", as_markdown(name, table))
    write_json(folder / "figures.json", {"notes": NOTES, "tables": tables})


def remarks(rows: LoggedRows) -> list[str]:
    """What stands below the first table: how far the judges can be trusted, what could not be
    run."""
    log = rows.log
    lines = ["Per cent with 95 % intervals, Wilson's for fractions.", ""]
    for row in judges_table(log):
        if row["lang"] == "all" and row["metric"] != "accuracy":
            value = figure(row["value"], row["low"], row["high"], percent=True)
            about = f"Judge {row['judge']}, {row['what']}, on {row['n']} replies labelled by hand"
            lines += [f"{about}: {row['metric']} {value}.", ""]
    for row in not_taken(rows):
        lines += [
            f"NOT TAKEN: {row['requests']} of {row['of']} requests of {row['benchmark']} by {row['method']}: "
            f"{row['first reason']}.",
            "",
        ]
    for row in not_judged(rows):
        about = f"{row['replies']} of {row['of']} replies of {row['method']} to {row['benchmark']}"
        lines += [f"NOT JUDGED: {about} by {row['judge']}, {row['reason']}.", ""]
    for name, why in log.manifest["missing"].items():
        lines += [f"MISSING {name}: {why}.", ""]
    return lines


def columns(table: Table) -> list[str]:
    """All fields, in the order in which they come up."""
    return list(dict.fromkeys(name for row in table for name in row))


def as_csv(table: Table) -> str:
    """Comma-separated, with a header; figures in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(table), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_markdown(name: str, table: Table) -> str:
    """Title, table and note; value and interval in one column, fractions in per cent."""
    shown = [folded(row) for row in table]
    names = columns(shown)
    lines = [
        f"# {name.replace('_', ' ')}",
        "",
        f"| {' | '.join(names)} |",
        "|" + "---|" * len(names),
    ]
    for row in shown:
        cells = [cell(row.get(name)) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + (["", NOTES[name]] if name in NOTES else [])) + "\n"


def folded(row: JsonObject) -> JsonObject:
    """A row with value and interval in one column, fractions in per cent."""
    if "value" not in row:
        return row
    percent = str(row.get("metric", "")).startswith(_FRACTIONS)
    rest = {k: v for k, v in row.items() if k not in ("value", "low", "high")}
    return {
        **rest,
        "value (95 % interval)": figure(row["value"], row["low"], row["high"], percent=percent),
    }


def figure(value: float, low: float | None, high: float | None, *, percent: bool) -> str:
    """A value with its interval, where it has one: to a tenth of a per cent, or to three digits.

    Examples:
        >>> figure(0.123, 0.091, 0.164, percent=True)
        '12.3 (9.1–16.4)'
        >>> figure(-0.5, -1.25, 0.25, percent=False)
        '-0.500 (-1.250 to 0.250)'
    """
    scale, digits = (100, 1) if percent else (1, 3)
    if low is None or high is None:
        return f"{scale * value:.{digits}f}"
    dash = " to " if low < 0 else "–"
    return f"{scale * value:.{digits}f} ({scale * low:.{digits}f}{dash}{scale * high:.{digits}f})"


def cell(value: object) -> str:
    """A value as Markdown and the report show it."""
    if value is None:
        return ""
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else str(value).replace("|", "\\|").replace("\n", " ")
    )
