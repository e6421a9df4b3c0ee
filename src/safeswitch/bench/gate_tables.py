"""Tables of the gate: how often it fired, how well its scores tell requests apart, where it errs.

From a run's log alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from safeswitch.bench.estimates import Table, belongs, fraction, fraction_of, groups_of
from safeswitch.bench.log import Logged, LoggedRows
from safeswitch.core.json_types import JsonObject
from safeswitch.statistics.intervals import Interval, bootstrap_mean
from safeswitch.statistics.prober_metrics import Estimate, measure


def gate_table(rows: LoggedRows) -> Table:
    """How often the gate fired, by benchmark and label, at which stage, and on which kinds of harm
    as the switch sees them."""
    table: Table = []
    for benchmark, method, logged in rows.each():
        for label in ("unsafe", "safe"):
            counted = [row for row in logged if row.decision and row.example.label == label]
            if not counted:
                continue
            hits = {row.example.id: bool(row.decision["fired"]) for row in counted}
            fired = [row.decision for row in counted if row.decision["fired"]]
            stages = Counter(decision["stage"] for decision in fired)
            kinds = Counter(decision.get("category", "") for decision in fired)
            first = {"benchmark": benchmark, "method": method, "label": label, "metric": "fired"}
            names = {"stages": _counted(stages), "kinds": _counted(kinds)}
            table.append({**first, **fraction(hits, groups_of(counted)), **names})
    return table


def _counted(names: Counter[str]) -> str:
    """Names with how often each occurs, in the order of the alphabet; the empty one is left out."""
    return ", ".join(f"{name} {n}" for name, n in sorted(names.items()) if name)


def prober_table(rows: LoggedRows) -> Table:
    """AUROC, TPR at 1 % FPR, calibration error and Brier score of each stage that scored every
    request, per benchmark with both labels and over all."""
    table: Table = []
    for method in rows.log.methods:
        for benchmark, own in _by_benchmark(rows, method).items():
            judged = [(row, group) for row, group in own if row.decision]
            labels = [row.example.label == "unsafe" for row, _ in judged]
            if not judged or all(labels) or not any(labels):
                continue
            groups = [group for _, group in judged]
            for stage in sorted(judged[0][0].decision["scores"]):
                values = [row.decision["scores"].get(stage) for row, _ in judged]
                if any(value is None for value in values):
                    continue
                about = {"benchmark": benchmark, "method": method, "stage": stage}
                scores = torch.tensor(values, dtype=torch.float64)
                table += [{**about, **row} for row in _prober_figures(scores, labels, groups)]
    return table


def _by_benchmark(rows: LoggedRows, method: str) -> dict[str, list[tuple[Logged, str]]]:
    """Rows of a method by benchmark, each with its group, and all of them together as ``all``."""
    found: dict[str, list[tuple[Logged, str]]] = {}
    everything: list[tuple[Logged, str]] = []
    for benchmark in rows.log.benchmarks:
        own = [(row, belongs(benchmark, row)) for row in rows.of(method, benchmark)]
        found[benchmark] = own
        everything += own
    return {**found, "all": everything}


def _prober_figures(scores: torch.Tensor, labels: Sequence[bool], groups: Sequence[str]) -> Table:
    """Figures of ``scores`` ``[n]``, one row each."""
    truth = torch.tensor(labels)
    found = measure(scores, truth, groups=groups)
    brier = bootstrap_mean(((scores - truth.double()) ** 2).tolist(), groups)
    figures: dict[str, tuple[str, Estimate | Interval]] = {
        "AUROC": ("higher", found.auroc),
        "TPR at 1 % FPR": ("higher", found.tpr_at_1_fpr),
        "calibration error": ("lower", found.ece),
        "Brier score": ("lower", brier),
    }
    table: Table = []
    for name, (better, e) in figures.items():
        figure = {"value": e.value, "low": e.low, "high": e.high, "n": len(labels)}
        table.append({"metric": name, "better": better, **figure})
    return table


def error_table(rows: LoggedRows) -> list[JsonObject]:
    """The gate's errors by category, for every method that decides: unsafe requests on which it did
    not fire (``missed``), safe ones on which it did (``false trigger``); all benchmarks together,
    the most frequent error first."""
    table: list[JsonObject] = []
    for method in rows.log.methods:
        decided = [
            r
            for b in rows.log.benchmarks
            for r in rows.of(method, b)
            if r.decision and r.example.label
        ]
        if not any(r.decision["scores"] for r in decided):
            continue
        for label, metric in (("unsafe", "missed"), ("safe", "false trigger")):
            own = [r for r in decided if r.example.label == label]
            found = []
            for category in sorted({r.example.category for r in own} - {""}):
                counted = [r for r in own if r.example.category == category]
                wrong = [bool(r.decision["fired"]) == (label == "safe") for r in counted]
                first = {
                    "method": method,
                    "category": category,
                    "metric": metric,
                    "better": "lower",
                }
                found.append({**first, **fraction_of(wrong, counted)})
            table += sorted(found, key=lambda row: -row["value"])
    return table
