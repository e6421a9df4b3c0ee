"""Tables of what a run cost, what it lacks, and how it was measured.

From a run's log alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from safeswitch.bench.estimates import Table, group_of, groups_of, mean_of
from safeswitch.bench.log import Logged, LoggedRows, RunLog
from safeswitch.statistics.intervals import paired_difference

_COSTS: Mapping[str, Callable[[Logged], float]] = {
    "seconds": lambda row: row.seconds,
    "prompt tokens read": lambda row: row.fed_tokens,
    "reply tokens made": lambda row: row.made_tokens,
}
_LEFT_OUT: Mapping[str, str] = {"auroc": "AUROC", "tpr_at_1_fpr": "TPR at 1 % FPR"}


def cost_table(rows: LoggedRows) -> Table:
    """Seconds and tokens a request, each with its difference to the untouched model where that ran,
    and peak memory."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        answered = {row.example.id: row for row in logged if row.reply is not None}
        if not answered:
            continue
        base: dict[str, Logged] = {}
        if "base" in rows.log.methods and method != "base":
            base = {row.example.id: row for row in rows.of("base", benchmark)}
        about = {"benchmark": benchmark, "method": method}
        for what, read in _COSTS.items():
            mean = mean_of({name: read(row) for name, row in answered.items()}, groups_of(logged))
            extra = _extra(answered, base, read)
            table.append({**about, "metric": what, "better": "lower", **mean, **extra})
        peaks = [row.peak_bytes for row in answered.values() if row.peak_bytes is not None]
        if peaks:
            peak = {"value": max(peaks) / 1e6, "low": None, "high": None, "n": len(peaks)}
            name = "peak memory in MB"
            table.append({**about, "metric": name, "better": "lower", **peak, **_NO_EXTRA})
    return table


_NO_EXTRA = dict.fromkeys(("extra", "extra_low", "extra_high"))


def _extra(
    own: Mapping[str, Logged], base: Mapping[str, Logged], read: Callable[[Logged], float]
) -> Mapping[str, float | None]:
    """The mean difference of a cost to the untouched model, with its interval; empty where there is
    none."""
    common = sorted(own.keys() & base.keys())
    if not common:
        return _NO_EXTRA
    found = paired_difference(
        [read(own[name]) for name in common],
        [read(base[name]) for name in common],
        [group_of(own[name]) for name in common],
    )
    return {"extra": found.value, "extra_low": found.low, "extra_high": found.high}


def not_taken(rows: LoggedRows) -> Table:
    """Requests that the model could not take, which no rate counts, and the first reason."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        reasons = [row.error for row in logged if row.error is not None]
        if reasons:
            table.append(
                {
                    "benchmark": benchmark,
                    "method": method,
                    "requests": len(reasons),
                    "of": len(logged),
                    "first reason": reasons[0],
                }
            )
    return table


def not_judged(rows: LoggedRows) -> Table:
    """Replies of which a judge has given no verdict, by reason; no rate of that judge counts
    them."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        for judge in rows.log.judges(benchmark):
            counted = [row.judgements[judge] for row in logged if judge in row.judgements]
            counts = Counter(verdict.unjudged for verdict in counted if verdict.unjudged)
            for reason, count in sorted(counts.items()):
                first = next(verdict.note for verdict in counted if verdict.unjudged == reason)
                table.append(
                    {
                        "benchmark": benchmark,
                        "method": method,
                        "judge": judge,
                        "reason": reason,
                        "replies": count,
                        "of": len(counted),
                        "first note": first,
                    }
                )
    return table


def left_out(log: RunLog) -> Table:
    """Stage 1 on sources and jailbreak templates that it was not fitted on, as the switch's own
    record tells."""
    table: Table = []
    for method, entry in log.manifest["methods"].items():
        for grouping, readers in (entry["record"].get("left_out") or {}).items():
            for reader, groups in readers.items():
                for name, figures in groups.items():
                    first = {"method": method, "left out": grouping, "reader": reader, "name": name}
                    table += [
                        {**first, "metric": m, "better": "higher", **figures[f]}
                        for f, m in _LEFT_OUT.items()
                    ]
    return table


def judges_table(log: RunLog) -> Table:
    """How well each judge agrees with people's labels, where that was measured."""
    return [
        {"judge": name, **row}
        for name, entry in log.manifest["judges"].items()
        for row in entry.get("agreement") or []
    ]


def benchmarks_table(log: RunLog) -> Table:
    """What was run, and what was not and why."""
    names = ("title", "measures", "n", "of", "origin", "data_hash")
    run: Table = []
    for benchmark, entry in log.manifest["benchmarks"].items():
        facts = {name: entry[name] for name in names}
        licence = entry["card"]["Licence"]
        run.append({"benchmark": benchmark, "status": "run", **facts, "licence": licence})
    gone = dict.fromkeys((*names, "licence"), "")
    return run + [
        {"benchmark": b, "status": f"MISSING: {why}", **gone}
        for b, why in log.manifest["missing"].items()
    ]
