"""Stage 1 on what it was not fitted on: one source, or one jailbreak template, left out at a time.

The headline of a prober is how it does on sources and templates that it never saw ("When Benchmarks
Lie", arXiv 2602.14161); the in-distribution figure and a word n-gram classifier stand beside it.
Every candidate layer is averaged here, so that no layer was chosen with the left-out part in view.
Knows nothing of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import RUNNING, Example
from safeswitch.data.splits import tied_rows
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.base import Prober
from safeswitch.probers.build import make_prober
from safeswitch.probers.leave_out import leave_one_out
from safeswitch.switch.engine import ReadingEngine

TEMPLATE_FOLDS = 10
Grouping = Callable[[Sequence[Example]], list[str]]


def by_source(examples: Sequence[Example]) -> list[str]:
    """Each row's source; "" where it cannot be missed (see :func:`sources_to_leave_out`)."""
    named = set(sources_to_leave_out(examples))
    return [e.source if e.source in named else "" for e in examples]


def by_template(examples: Sequence[Example]) -> list[str]:
    """Each row's jailbreak template, "" for plain rows; more than ``TEMPLATE_FOLDS`` of them are
    dealt out to that many folds."""
    names = sorted({e.wrapper for e in examples if e.wrapper})
    if len(names) < 2:
        return [""] * len(examples)
    if len(names) <= TEMPLATE_FOLDS:
        return [e.wrapper for e in examples]
    fold = {
        name: f"templates {i % TEMPLATE_FOLDS + 1} of {TEMPLATE_FOLDS}"
        for i, name in enumerate(names)
    }
    return [fold.get(e.wrapper, "") for e in examples]


GROUPINGS: Mapping[str, Grouping] = {"source": by_source, "wrapper": by_template}


def sources_to_leave_out(examples: Sequence[Example]) -> list[str]:
    """Sources without which both labels are still there, each in two groups of tied rows at least
    (one may have to be tested on)."""
    tied = tied_rows(examples)
    found = []
    for source in sorted({e.source for e in examples}):
        left = {(e.unsafe, tied[i]) for i, e in enumerate(examples) if e.source != source}
        groups_of = Counter(unsafe for unsafe, _ in left)
        if min(groups_of[True], groups_of[False]) > 1:
            found.append(source)
    return found


def left_out_report(
    engine: ReadingEngine,
    examples: Sequence[Example],
    settings: FitSettings,
    *,
    track: Track = untracked,
) -> dict[str, JsonObject]:
    """Metrics as plain JSON: by grouping (``source``, ``wrapper``), reader (``stage1``, ``text
    baseline``), then group.

    A grouping in which nothing can be left out is absent. Rows tied by ``group`` or by equal
    prompts never stand on both sides of a left-out source; a request may stand in the fit in
    another template than the one left out.
    """
    groups = {name: grouping(examples) for name, grouping in GROUPINGS.items()}
    wanted = {name: names for name, names in groups.items() if any(names)}
    if not wanted:
        return {}
    plan = FitPlan(engine.lm.num_layers, settings)
    points = tuple(p for p in plan.points if p.position.kind not in RUNNING)
    with track(len(examples), "left out: reading requests") as advance:
        _, activations = engine.collect(list(examples), points, max_new_tokens=0, progress=advance)
    activations = replace(activations, sources=tuple(e.source for e in examples))
    labels = torch.tensor([e.unsafe for e in examples])
    clusters = [str(b) for b in tied_rows(examples)]
    specs: dict[str, JsonObject] = {
        "stage1": plan.stage1_spec(plan.layers),
        "text baseline": {"kind": "ngram"},
    }
    fits = sum(len(set(names) - {""}) + 1 for names in wanted.values())
    report: dict[str, JsonObject] = {grouping: {} for grouping in wanted}
    with track(fits * len(specs), "left out: fitting on the rest") as advance:
        for grouping, names in wanted.items():
            for reader, spec in specs.items():
                found = leave_one_out(
                    partial(_counted, spec, advance),
                    activations,
                    labels,
                    names,
                    clusters=clusters,
                    drop_shared=grouping == "source",
                    seed=settings.seed,
                )
                report[grouping][reader] = {
                    group: asdict(metrics) for group, metrics in found.items()
                }
    return report


def _counted(spec: JsonMapping, advance: Callable[[int], None]) -> Prober:
    """A fresh prober for the next fit, which is counted."""
    advance(1)
    return make_prober(spec)
