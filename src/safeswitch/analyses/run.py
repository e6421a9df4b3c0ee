"""Analyses of a finished run, into ``analyses.json`` of the run folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safeswitch.analyses.base import ANALYSES, FinishedRun
from safeswitch.bench.log import Logged, RunLog
from safeswitch.core.artifact import write_json
from safeswitch.core.errors import DataError, FingerprintError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.switch.switch import Switch

FORMAT_VERSION = 1
FILE = "analyses.json"
_HEADER = ("format_version", "method", "requests", "seed")


def analyse(
    engine: TransformersEngine,
    folder: Path,
    *,
    analyses: Sequence[str] | None = None,
    method: str = "safeswitch",
    limit: int = 400,
    strips: int = 6,
    how: str = "pca",
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> JsonObject:
    """Run analyses on the requests of a finished run; what each gives stands in the file under its
    name.

    Args:
        engine: The model that the run was made with.
        folder: Run folder; its log says what the requests were and what became of them.
        analyses: Names of :data:`safeswitch.analyses.base.ANALYSES`; None: all of them.
        method: Method of the run whose gate is looked at.
        limit: Most requests, drawn at random.
        strips: Example conversations.
        how: ``pca`` or ``umap``.
        seed: Of what is drawn, split and fitted.
        say: Told of each analysis.

    Raises:
        SettingError: an unknown analysis, or one whose name has another meaning in the file.
        FingerprintError: another model.
        DataError: a method that has no gate, or requests that cannot be fitted on.
        ArtifactError: no run there, or it cannot be written.
    """
    names = list(ANALYSES) if analyses is None else list(analyses)
    for name in names:
        if name in _HEADER:
            raise SettingError(f"analysis {name!r}: {FILE} has a field of that name; rename it")
    chosen = {name: ANALYSES[name] for name in names}
    log = RunLog.open(folder)
    switch = _switch_of(log, engine, folder, method)
    rows = _drawn(log, method, limit, seed)
    run = FinishedRun(
        engine,
        switch,
        examples=[example for example, _ in rows],
        fired=[bool(row.decision["fired"]) for _, row in rows],
        complied=_complied(log, rows),
        how=how,
        strips=strips,
        seed=seed,
    )
    found: JsonObject = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "requests": len(rows),
        "seed": seed,
    }
    for name, analysis in chosen.items():
        say(f"analysis: {name}")
        found[name] = analysis(run)
    write_json(folder / FILE, found)
    return found


def _switch_of(log: RunLog, engine: TransformersEngine, folder: Path, method: str) -> Switch:
    """The switch of a method of the run, once model and gate are those that can be looked into."""
    model = log.manifest["model"]
    if model["fingerprint"] != engine.lm.fingerprint:
        raise FingerprintError(
            f"{folder} was made with {model['id']} (fingerprint {model['fingerprint']}), but the "
            f"model is {engine.lm.model_id} (fingerprint {engine.lm.fingerprint})"
        )
    if method not in log.methods:
        raise DataError(f"{folder} has no method {method!r}; its methods: {', '.join(log.methods)}")
    switch = Switch.from_pretrained(log.switch_folder(method))
    if not switch.gate.layers:
        raise DataError(f"the gate of {method!r} reads no states; there is nothing to analyse")
    return switch


def _drawn(log: RunLog, method: str, limit: int, seed: int) -> list[tuple[Example, Logged]]:
    """Labelled requests with what became of them under ``method``, under ids that no two benchmarks
    share."""
    rows = [
        (replace(row.example, id=f"{benchmark}/{row.example.id}"), row)
        for benchmark in log.benchmarks
        for row in log.rows(method, benchmark)
        if row.example.label and row.decision
    ]
    if len(rows) > limit:
        rows = random.Random(f"analyse-{seed}").sample(rows, limit)
    return rows


def _complied(log: RunLog, rows: Sequence[tuple[Example, Logged]]) -> list[bool | None]:
    """Whether the base model complied, None where it did not run."""
    if "base" not in log.methods:
        return [None] * len(rows)
    said = {
        f"{b}/{row.example.id}": verdict.complied
        for b in log.benchmarks
        for row in log.rows("base", b)
        if (verdict := row.judgements.get(log.judges(b)[0])) is not None
    }
    return [said.get(e.id) for e, _ in rows]
