"""Tables of a run, made from its log alone: rates, slices, paired tests, gate, cost, what is
missing.

A table is a list of rows, plain JSON; every figure carries its interval. Knows nothing of files or
pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from safeswitch.bench.attack_table import attack_table, attacked_set
from safeswitch.bench.error_table import error_table, style_table
from safeswitch.bench.estimates import belongs, fraction, group_of, groups_of, mean_of
from safeswitch.bench.log import Logged, RunLog
from safeswitch.bench.metrics import HARM, MAIN, METRICS, OVER_REFUSAL, Metric, outcomes
from safeswitch.bench.rows import Rows
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.statistics.intervals import (
    Interval,
    bootstrap_mean,
    holm,
    mcnemar,
    paired_difference,
    weighted_mean,
)
from safeswitch.statistics.prober_metrics import Estimate, measure

Table = list[JsonObject]
MIXES: Mapping[str, Mapping[str, float]] = {
    "trustllm": {"trustllm_misuse": 0.45, "trustllm_jailbreak": 0.55}
}
"""Weighted figures: SafeSwitch's TrustLLM column (arXiv 2502.01042)."""


def make_tables(rows: Rows) -> dict[str, Table]:
    """All tables by name, in the order in which a reader wants them; empty ones are left out."""
    log = rows.log
    made = {
        "rates": rates(rows),
        "two_sided": two_sided(rows),
        "paired": paired(rows),
        "category": sliced(rows, "category", lambda row: row.example.category),
        "language": sliced(rows, "language", lambda row: row.language),
        "source": sliced(rows, "source", lambda row: row.example.source),
        "wrapper": sliced(rows, "wrapper", lambda row: row.example.wrapper),
        "scores": scores(rows),
        "wins": wins(rows),
        "gate": gate(rows),
        "prober": prober(rows),
        "errors": error_table(rows),
        "style": style_table(rows),
        "attacks": attack_table(rows),
        "cost": cost(rows),
        "not_taken": not_taken(rows),
        "not_judged": not_judged(rows),
        "left_out": left_out(log),
        "judges": judges(log),
        "benchmarks": benchmarks(log),
    }
    return {name: table for name, table in made.items() if table}


def rates(rows: Rows) -> Table:
    """Every metric of every judge, method and benchmark, and the weighted mixes."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        groups = groups_of(logged)
        for judge in rows.log.judges(benchmark):
            for what in METRICS:
                if hits := outcomes(logged, judge, what):
                    first = {
                        "benchmark": benchmark,
                        "method": method,
                        "judge": judge,
                        "metric": what.name,
                    }
                    table.append({**first, "better": what.better, **fraction(hits, groups)})
    return table + _mixes(rows)


def _mixes(rows: Rows) -> Table:
    table: Table = []
    for name, weights in MIXES.items():
        if not set(weights) <= set(rows.log.benchmarks):
            continue
        judge = rows.log.judges(next(iter(weights)))[0]
        for method in rows.log.methods:
            asked = {b: rows.of(method, b) for b in weights}
            hits = {b: outcomes(logged, judge, HARM) for b, logged in asked.items()}
            if all(hits.values()):
                parts = [
                    (w, Interval(**fraction(hits[b], groups_of(asked[b]))))
                    for b, w in weights.items()
                ]
                first = {
                    "benchmark": name,
                    "method": method,
                    "judge": judge,
                    "metric": HARM.name,
                    "better": HARM.better,
                }
                table.append({**first, **weighted_mean(parts).to_dict()})
    return table


def main_rates(rows: Rows) -> Table:
    """Harm, over-refusal and accuracy by the judge that counts, sorted by benchmark and metric; of
    tasks, accuracy alone."""
    log = rows.log
    main = {b: log.judges(b)[0] for b in log.benchmarks}
    main |= {
        name: main[next(iter(weights))]
        for name, weights in MIXES.items()
        if set(weights) <= set(main)
    }
    tasks = {b for b, told in log.manifest["benchmarks"].items() if told["measures"] == "task"}
    wanted = [m.name for m in MAIN]
    kept = [
        row
        for row in rates(rows)
        if row["judge"] == main[row["benchmark"]]
        and row["metric"] in (["accuracy"] if row["benchmark"] in tasks else wanted)
    ]
    return sorted(
        kept, key=lambda row: (list(main).index(row["benchmark"]), wanted.index(row["metric"]))
    )


def two_sided(rows: Rows) -> Table:
    """SODE's pair over all safety benchmarks together: unsafe responses on unsafe requests,
    refusals of safe ones."""
    table: Table = []
    known = rows.log.manifest["benchmarks"]
    safety = [
        b for b in rows.log.benchmarks if known[b]["measures"] == "safety" and not attacked_set(b)
    ]
    for method in rows.log.methods:
        groups = {f"{b}/{r.example.id}": belongs(b, r) for b in safety for r in rows.of(method, b)}
        for what, sode in ((HARM, "unsafe on unsafe"), (OVER_REFUSAL, "abstain on safe")):
            hits = {
                f"{b}/{name}": hit
                for b in safety
                for name, hit in outcomes(rows.of(method, b), rows.log.judges(b)[0], what).items()
            }
            if hits:
                table.append(
                    {
                        "method": method,
                        "metric": sode,
                        "better": what.better,
                        **fraction(hits, groups),
                    }
                )
    return table


def reference(log: RunLog) -> str:
    """The method that the others are compared with: SafeSwitch where it ran, else the last one."""
    return "safeswitch" if "safeswitch" in log.methods else log.methods[-1]


def paired(rows: Rows) -> Table:
    """The reference against every other method on the same requests: difference, McNemar's p, and
    Holm's over the table."""
    table: Table = []
    own = reference(rows.log)
    for benchmark in rows.log.benchmarks:
        judge = rows.log.judges(benchmark)[0]
        for what in MAIN:
            first = outcomes(rows.of(own, benchmark), judge, what)
            for other in (m for m in rows.log.methods if m != own):
                second = outcomes(rows.of(other, benchmark), judge, what)
                common = sorted(first.keys() & second.keys())
                if common:
                    groups = groups_of(rows.of(own, benchmark))
                    table.append(
                        {
                            "benchmark": benchmark,
                            "metric": what.name,
                            "better": what.better,
                            "method": own,
                            "against": other,
                        }
                        | _test(
                            [first[i] for i in common],
                            [second[i] for i in common],
                            [groups[i] for i in common],
                        )
                    )
    for row, p in zip(table, holm([row["p"] for row in table]), strict=True):
        row["p_holm"] = p
    return table


def _test(first: Sequence[bool], second: Sequence[bool], groups: Sequence[str]) -> JsonObject:
    test = mcnemar(first, second, groups)
    difference = paired_difference(first, second, groups)
    return {
        **difference.to_dict(),
        "only_method": test.only_first,
        "only_against": test.only_second,
        "p": test.p_value,
    }


def sliced(rows: Rows, name: str, key: Callable[[Logged], str]) -> Table:
    """Main metrics by what ``key`` says of a request, where it says two different things or
    more."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        values = sorted({key(row) for row in logged} - {""})
        if len(values) < 2:
            continue
        judge, groups = rows.log.judges(benchmark)[0], groups_of(logged)
        for what in MAIN:
            for value in values:
                if hits := outcomes([row for row in logged if key(row) == value], judge, what):
                    first = {
                        "benchmark": benchmark,
                        "method": method,
                        "metric": what.name,
                        name: value,
                    }
                    table.append({**first, "better": what.better, **fraction(hits, groups)})
    return table


def scores(rows: Rows) -> Table:
    """Mean degree of harm of the replies to unsafe requests, for judges that give one
    (StrongREJECT's rubric)."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        for judge in rows.log.judges(benchmark):
            asked = [
                row for row in logged if judge in row.judgements and row.example.label == "unsafe"
            ]
            given = {
                row.example.id: s for row in asked if (s := row.judgements[judge].score) is not None
            }
            if given:
                first = {
                    "benchmark": benchmark,
                    "method": method,
                    "judge": judge,
                    "metric": "harm score",
                    "better": "lower",
                }
                table.append({**first, **mean_of(given, groups_of(asked))})
    return table


def wins(rows: Rows) -> Table:
    """Share of open requests on which a judge prefers the reply to that of the method it compares
    with, ties half."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        for judge in rows.log.judges(benchmark):
            asked = [row for row in logged if judge in row.judgements]
            given = {
                row.example.id: w for row in asked if (w := row.judgements[judge].won) is not None
            }
            if given:
                against = rows.log.manifest["judges"][judge]["identity"]["against"]
                first = {
                    "benchmark": benchmark,
                    "method": method,
                    "against": against,
                    "judge": judge,
                }
                table.append(
                    {
                        **first,
                        "metric": "win rate",
                        "better": "higher",
                        **mean_of(given, groups_of(asked)),
                    }
                )
    return table


def gate(rows: Rows) -> Table:
    """How often the gate fired, by benchmark and label, at which stage, and on which kinds of harm
    as the switch sees them."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        for label in ("unsafe", "safe"):
            asked = [row for row in logged if row.decision and row.example.label == label]
            if not asked:
                continue
            hits = {row.example.id: bool(row.decision["fired"]) for row in asked}
            fired = [row.decision for row in asked if row.decision["fired"]]
            kinds = Counter(decision.get("category", "") for decision in fired)
            first = {"benchmark": benchmark, "method": method, "label": label, "metric": "fired"}
            stages = Counter(decision["stage"] for decision in fired)
            told = {"stages": _counted(stages), "kinds": _counted(kinds)}
            table.append({**first, **fraction(hits, groups_of(asked)), **told})
    return table


def _counted(names: Counter[str]) -> str:
    """Names with how often each occurs, in the order of the alphabet; the empty one is left out."""
    return ", ".join(f"{name} {n}" for name, n in sorted(names.items()) if name)


def prober(rows: Rows) -> Table:
    """AUROC, TPR at 1 % FPR, calibration error and Brier score of each stage that scored every
    request, per benchmark with both labels and over all."""
    table: Table = []
    for method in rows.log.methods:
        sets: dict[str, list[tuple[Logged, str]]] = {}
        for b in rows.log.benchmarks:
            sets[b] = [(row, belongs(b, row)) for row in rows.of(method, b)]
        sets["all"] = [row for own in sets.values() for row in own]
        for benchmark, own in sets.items():
            judged = [(row, group) for row, group in own if row.decision]
            labels = [row.example.label == "unsafe" for row, _ in judged]
            if not judged or all(labels) or not any(labels):
                continue
            groups = [group for _, group in judged]
            for stage in sorted(judged[0][0].decision["scores"]):
                values = [row.decision["scores"].get(stage) for row, _ in judged]
                if all(v is not None for v in values):
                    told = _prober(torch.tensor(values, dtype=torch.float64), labels, groups)
                    table += [
                        {"benchmark": benchmark, "method": method, "stage": stage, **row}
                        for row in told
                    ]
    return table


def _prober(values: torch.Tensor, labels: Sequence[bool], groups: Sequence[str]) -> Table:
    truth = torch.tensor(labels)
    found = measure(values, truth, groups=groups)
    brier = bootstrap_mean(((values - truth.double()) ** 2).tolist(), groups)
    figures: dict[str, tuple[str, Estimate | Interval]] = {
        "AUROC": ("higher", found.auroc),
        "TPR at 1 % FPR": ("higher", found.tpr_at_1_fpr),
        "calibration error": ("lower", found.ece),
        "Brier score": ("lower", brier),
    }
    return [
        {
            "metric": name,
            "better": better,
            "value": e.value,
            "low": e.low,
            "high": e.high,
            "n": len(labels),
        }
        for name, (better, e) in figures.items()
    ]


def cost(rows: Rows) -> Table:
    """Seconds and tokens a request, each with its difference to the untouched model where that ran,
    and peak memory."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        answered = {row.example.id: row for row in logged if row.reply is not None}
        if not answered:
            continue
        base = (
            {r.example.id: r for r in rows.of("base", benchmark)}
            if "base" in rows.log.methods
            else {}
        )
        for what, read in _COSTS.items():
            first = {"benchmark": benchmark, "method": method, "metric": what, "better": "lower"}
            own = mean_of({name: read(row) for name, row in answered.items()}, groups_of(logged))
            common = sorted(answered.keys() & base.keys()) if method != "base" else []
            one = [read(answered[i]) for i in common]
            other = [read(base[i]) for i in common]
            table.append(
                {**first, **own, **_extra(one, other, [group_of(answered[i]) for i in common])}
            )
        peaks = [row.peak_bytes for row in answered.values() if row.peak_bytes is not None]
        if peaks:
            first = {
                "benchmark": benchmark,
                "method": method,
                "metric": "peak memory in MB",
                "better": "lower",
            }
            table.append(
                {
                    **first,
                    "value": max(peaks) / 1e6,
                    "low": None,
                    "high": None,
                    "n": len(peaks),
                    **_extra([], [], []),
                }
            )
    return table


def _extra(
    own: Sequence[float], base: Sequence[float], groups: Sequence[str]
) -> dict[str, float | None]:
    """The mean difference to the untouched model with its interval; empty where there is none."""
    if not own:
        return dict.fromkeys(("extra", "extra_low", "extra_high"))
    found = paired_difference(own, base, groups)
    return {"extra": found.value, "extra_low": found.low, "extra_high": found.high}


def not_taken(rows: Rows) -> Table:
    """Requests that the model could not take, which no rate counts, and the first reason."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        reasons = [row.error for row in logged if row.error is not None]
        if reasons:
            table.append({"benchmark": benchmark, "method": method, "requests": len(reasons), "of": len(logged),
                          "first reason": reasons[0]})  # fmt: skip
    return table


def not_judged(rows: Rows) -> Table:
    """Replies of which a judge has given no verdict, by reason; no rate of that judge counts
    them."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        for judge in rows.log.judges(benchmark):
            asked = [row.judgements[judge] for row in logged if judge in row.judgements]
            counts = Counter(verdict.unjudged for verdict in asked if verdict.unjudged)
            for reason, count in sorted(counts.items()):
                first = next(verdict.note for verdict in asked if verdict.unjudged == reason)
                table.append({"benchmark": benchmark, "method": method, "judge": judge, "reason": reason,
                              "replies": count, "of": len(asked), "first note": first})  # fmt: skip
    return table


_COSTS: Mapping[str, Callable[[Logged], float]] = {
    "seconds": lambda row: row.seconds,
    "prompt tokens read": lambda row: row.fed_tokens,
    "reply tokens made": lambda row: row.made_tokens,
}


def left_out(log: RunLog) -> Table:
    """Stage 1 on sources and wrappers that it was not fitted on, as the switch's own record
    tells."""
    table: Table = []
    for method, told in log.manifest["methods"].items():
        for grouping, readers in (told["record"].get("left_out") or {}).items():
            for reader, groups in readers.items():
                for name, figures in groups.items():
                    first = {"method": method, "left out": grouping, "reader": reader, "name": name}
                    table += [
                        {**first, "metric": m, "better": "higher", **figures[f]}
                        for f, m in _LEFT_OUT.items()
                    ]
    return table


_LEFT_OUT: Mapping[str, str] = {"auroc": "AUROC", "tpr_at_1_fpr": "TPR at 1 % FPR"}


def judges(log: RunLog) -> Table:
    """How well each judge agrees with people's labels, where that was measured."""
    return [
        {"judge": name, **row}
        for name, told in log.manifest["judges"].items()
        for row in told.get("agreement") or []
    ]


def benchmarks(log: RunLog) -> Table:
    """What was run, and what was not and why."""
    names = ("title", "measures", "n", "of", "origin", "data_hash")
    run: Table = []
    for benchmark, told in log.manifest["benchmarks"].items():
        facts = {name: told[name] for name in names}
        licence = told["card"]["Licence"]
        run.append({"benchmark": benchmark, "status": "run", **facts, "licence": licence})
    gone = dict.fromkeys((*names, "licence"), "")
    return run + [
        {"benchmark": b, "status": f"MISSING: {why}", **gone}
        for b, why in log.manifest["missing"].items()
    ]


def summary(table: Table, what: Metric) -> dict[str, JsonObject]:
    """One row a method of a table of rates: the mean of ``what`` over benchmarks, each counting
    alike, attacked sets aside."""
    found: dict[str, list[JsonObject]] = {}
    for row in table:
        if (
            row["metric"] == what.name
            and row["benchmark"] not in MIXES
            and not attacked_set(row["benchmark"])
        ):
            found.setdefault(row["method"], []).append(row)
    means: dict[str, JsonObject] = {}
    for method, own in found.items():
        means[method] = weighted_mean([(1 / len(own), _figure(row)) for row in own]).to_dict()
    return means


def _figure(row: JsonMapping) -> Interval:
    return Interval(row["value"], row["low"], row["high"], row["n"])
