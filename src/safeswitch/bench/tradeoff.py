"""Safety against reasoning effort, from a run's log: a row a method and effort, each tested against
its first effort."""

from __future__ import annotations

from pathlib import Path

from safeswitch.bench.effort import split_name
from safeswitch.bench.estimates import Groups, Table, fraction, groups_of, mean_of
from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.metrics import MAIN, Metric, outcomes
from safeswitch.bench.outputs import as_csv, figure
from safeswitch.core.artifact import write_text
from safeswitch.core.json_types import JsonObject
from safeswitch.statistics.intervals import mcnemar, paired_difference

TOKENS = "reply tokens made"
NOTE = (
    "All requests of the suite together; per cent with 95 % Wilson intervals, tokens a request "
    "with the bootstrap's; variants of one request count as a group. In brackets, McNemar's exact "
    "p against the method's first effort on the same requests, not corrected for the number of "
    "tests."
)


def tradeoff(rows: LoggedRows) -> Table:
    """Harm, over-refusal, accuracy and tokens of every method at every effort.

    Raises:
        SettingError: a run whose methods have no efforts.
    """
    table: Table = []
    first: dict[str, str] = {}
    for name in rows.log.methods:
        method, effort = split_name(name)
        start = first.setdefault(method, name)
        about = {"method": method, "effort": effort}
        groups = {
            f"{b}/{i}": group
            for b in rows.log.benchmarks
            for i, group in groups_of(rows.of(name, b)).items()
        }
        for what in MAIN:
            if hits := _hits(rows, name, what):
                against = _against(hits, _hits(rows, start, what), groups, name == start)
                table.append(
                    {
                        **about,
                        "metric": what.name,
                        "better": what.better,
                        **fraction(hits, groups),
                        **against,
                    }
                )
        made = _tokens(rows, name)
        if made:
            before = _tokens(rows, start)
            both = sorted(made.keys() & before.keys())
            change = (
                paired_difference([made[i] for i in both], [before[i] for i in both]).value
                if both
                else None
            )
            row = {**about, "metric": TOKENS, "better": "lower", **mean_of(made, groups)}
            table.append({**row, "difference": None if name == start else change, "p": None})
    return table


def _hits(rows: LoggedRows, name: str, what: Metric) -> dict[str, bool]:
    log = rows.log
    found: dict[str, bool] = {}
    tasks = {b for b, entry in log.manifest["benchmarks"].items() if entry["measures"] == "task"}
    for benchmark in log.benchmarks:
        if benchmark not in tasks or what.name == "accuracy":
            hits = outcomes(rows.of(name, benchmark), log.judges(benchmark)[0], what)
            found |= {f"{benchmark}/{i}": hit for i, hit in hits.items()}
    return found


def _tokens(rows: LoggedRows, name: str) -> dict[str, float]:
    return {
        f"{b}/{row.example.id}": row.made_tokens
        for b in rows.log.benchmarks
        for row in rows.of(name, b)
        if row.reply is not None
    }


def _against(
    hits: dict[str, bool], first: dict[str, bool], groups: Groups, same: bool
) -> JsonObject:
    both = sorted(hits.keys() & first.keys())
    if same or not both:
        return {"difference": None, "p": None}
    mine, theirs = [hits[i] for i in both], [first[i] for i in both]
    return {
        "difference": (sum(mine) - sum(theirs)) / len(both),
        "p": mcnemar(mine, theirs, [groups[i] for i in both]).p_value,
    }


def write_tradeoff(folder: Path) -> None:
    """``tradeoff.md`` and ``tradeoff.csv`` of a run folder.

    Raises:
        ArtifactError: no run there, or the folder cannot be written.
        SettingError: a run whose methods have no efforts.
    """
    table = tradeoff(LoggedRows(RunLog.open(folder)))
    write_text(folder / "tradeoff.csv", as_csv(table))
    write_text(folder / "tradeoff.md", _markdown(table))


def _markdown(table: Table) -> str:
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    lines = [f"| method | effort | {' | '.join(metrics)} |", "|---|---|" + "---|" * len(metrics)]
    for method, effort in dict.fromkeys((row["method"], row["effort"]) for row in table):
        own = {
            row["metric"]: row
            for row in table
            if (row["method"], row["effort"]) == (method, effort)
        }
        cells = [_cell(own[m], m) if m in own else "" for m in metrics]
        lines.append(f"| {method} | {effort} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", NOTE]) + "\n"


def _cell(row: JsonObject, metric: str) -> str:
    shown = figure(row["value"], row["low"], row["high"], percent=metric != TOKENS)
    return shown if row["p"] is None else f"{shown} [p = {row['p']:.2g}]"
