"""All analyses of a finished run that need its model, into ``analyses.json`` of the run folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safeswitch.analyses.projection import How, projection
from safeswitch.analyses.quality import prober_quality
from safeswitch.analyses.strip import score_strip
from safeswitch.bench.log import Logged, RunLog
from safeswitch.core.artifact import write_json
from safeswitch.core.errors import DataError, FingerprintError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.switch.switch import Switch

FORMAT_VERSION = 1
FILE = "analyses.json"


def analyse(
    engine: TransformersEngine,
    folder: Path,
    *,
    method: str = "safeswitch",
    limit: int = 400,
    strips: int = 6,
    how: How = "pca",
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> JsonObject:
    """Prober quality by layer and pilot token, states in two dimensions, and score strips of
    example conversations.

    Args:
        engine: The model that the run was made with.
        folder: Run folder; its log says what the requests were and what became of them.
        method: Method of the run whose gate is looked at.
        limit: Most requests, drawn at random.
        strips: Conversations to draw: right and wrong decisions on unsafe and safe requests in
            turn.
        how: ``pca`` or ``umap``.
        seed: Of what is drawn, split and fitted.
        say: Told of each analysis.

    Raises:
        FingerprintError: another model.
        DataError: a method that has no gate, or requests that cannot be fitted on.
        ArtifactError: no run there, or it cannot be written.
    """
    log = RunLog.open(folder)
    if log.manifest["model"]["fingerprint"] != engine.lm.fingerprint:
        raise FingerprintError(
            f"{folder} was made with {log.manifest['model']['id']} (fingerprint "
            f"{log.manifest['model']['fingerprint']}), but the model is {engine.lm.model_id} "
            f"(fingerprint {engine.lm.fingerprint})"
        )
    if method not in log.methods:
        raise DataError(f"{folder} has no method {method!r}; its methods: {', '.join(log.methods)}")
    switch = Switch.from_pretrained(log.switch_folder(method))
    if not switch.gate.layers:
        raise DataError(f"the gate of {method!r} reads no states; there is nothing to analyse")
    rows = _drawn(log, method, limit, seed)
    examples = [e for e, _ in rows]
    told: JsonObject = {
        "format_version": FORMAT_VERSION,
        "method": method,
        "requests": len(rows),
        "seed": seed,
    }
    say("states in two dimensions")
    told["projection"] = projection(
        engine, switch, examples, layer=max(switch.gate.layers), how=how, seed=seed
    )
    say("score strips")
    told["strips"] = [
        {
            "id": e.id,
            "label": e.label,
            "kind": kind,
            **score_strip(engine, switch.gate, e).to_dict(),
        }
        for kind, e in _typical(rows, strips)
    ]
    say("prober quality by layer and pilot token")
    told["quality"] = prober_quality(engine, examples, _complied(log, rows), seed=seed)
    write_json(folder / FILE, told)
    return told


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
    """Whether the untouched model complied, None where it did not run."""
    if "base" not in log.methods:
        return [None] * len(rows)
    said = {
        f"{b}/{row.example.id}": verdict.complied
        for b in log.benchmarks
        for row in log.rows("base", b)
        if (verdict := row.judgements.get(log.judges(b)[0])) is not None
    }
    return [said.get(e.id) for e, _ in rows]


def _typical(rows: Sequence[tuple[Example, Logged]], count: int) -> list[tuple[str, Example]]:
    """Examples of right and wrong decisions on unsafe and safe requests, in turn, ``count`` in
    all."""
    kinds = {
        ("unsafe", True): "unsafe, fired",
        ("safe", False): "safe, passed",
        ("unsafe", False): "unsafe, passed",
        ("safe", True): "safe, fired",
    }
    queues: dict[str, list[Example]] = {kind: [] for kind in kinds.values()}
    for example, row in rows:
        kind = kinds.get((example.label, bool(row.decision["fired"])))
        if kind is not None:
            queues[kind].append(example)
    found: list[tuple[str, Example]] = []
    while len(found) < count and any(queues.values()):
        found += [(kind, queue.pop(0)) for kind, queue in queues.items() if queue]
    return found[:count]
