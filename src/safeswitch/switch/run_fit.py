"""From files to a switch folder: what ``safeswitch fit`` does.

Knows files, fitting and the leave-one-source-out report. Knows nothing of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.core.artifact import check_writable
from safeswitch.core.errors import FitError
from safeswitch.core.types import Example
from safeswitch.data.leakage import leaks
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import grouped_split
from safeswitch.probers.build import make_prober
from safeswitch.probers.leave_out import leave_one_out
from safeswitch.switch.fit import tokens_read
from safeswitch.switch.fit_data import Generating
from safeswitch.switch.fit_gate import fit_points, stage1_spec
from safeswitch.switch.fit_settings import FitSettings
from safeswitch.switch.switch import Switch

Say = Callable[[str], None]


def read_sources(sources: Sequence[str], *, label: str | None, limit: int | None) -> list[Example]:
    """Read every source, thinned to ``limit`` rows each (evenly, each label by its share), ids made unique by the source's name.

    Raises:
        FitError: one label only.
    """
    examples: list[Example] = []
    for source in sources:
        rows = read_examples(source, label=label)
        if limit is not None and len(rows) > limit:
            rows = _thinned(rows, limit)
        name = Path(source).stem
        examples += [replace(e, id=f"{name}/{e.id}", source=e.source or name) for e in rows]
    unsafe = sum(e.unsafe for e in examples)
    if unsafe in (0, len(examples)):
        raise FitError(
            f"fitting needs unsafe and safe requests; the {len(examples)} rows read are all "
            f"{'unsafe' if unsafe else 'safe'}; add --data with the other label"
        )
    return examples


def _thinned(rows: Sequence[Example], limit: int) -> list[Example]:
    """``limit`` rows in their order; taken from one label after the other, since files often alternate."""
    by_label = sorted(range(len(rows)), key=lambda i: rows[i].label)
    return [rows[i] for i in sorted(by_label[i * len(rows) // limit] for i in range(limit))]


def fit_files(
    engine: Generating,
    sources: Sequence[str],
    out: Path,
    settings: FitSettings,
    *,
    label: str | None = None,
    limit: int | None = None,
    leave_out: bool = True,
    say: Say = lambda text: None,
) -> Switch:
    """Read, fit, report and save; the folder is written only when everything has succeeded.

    Raises:
        ArtifactError: ``out`` cannot be written.
        DataError, FitError, ContextLengthError: see :func:`read_sources` and :meth:`Switch.fit`.
    """
    check_writable(out)
    examples = _fitting(engine, read_sources(sources, label=label, limit=limit), settings, say)
    parts = grouped_split(examples, seed=settings.seed)
    twice = leaks(parts["train"], parts["validation"])
    if twice:
        say(f"note: {len(twice)} validation requests nearly repeat a training request; in-distribution figures flatter")
    switch = Switch.fit(engine, parts, settings, say=say)
    left_out = sources_to_leave_out(examples) if leave_out else []
    if leave_out and not left_out:
        say("note: no source can be left out, since without it a label would be missing; the report has no such figures")
    if left_out:
        say(f"stage 1: leaving out one source at a time: {', '.join(left_out)}")
        report = leave_one_source_out(engine, examples, switch, settings)
        switch = replace(switch, record={**switch.record, "leave_one_source_out": report})
    switch.save_pretrained(out)
    return switch


def _fitting(engine: Generating, examples: Sequence[Example], settings: FitSettings, say: Say) -> list[Example]:
    """Requests that leave room for a reply; the others are named by source, not silently lost."""
    limit = engine.lm.context_length
    if limit is None:
        return list(examples)
    lengths = [len(row) for row in engine.lm.encode(list(examples), check=False)]
    own = max(settings.reply_tokens, tokens_read(engine.lm.num_layers, settings))
    room = max(own, *(len(engine.lm.tokenizer(e.reply or "")["input_ids"]) + 1 for e in examples))
    kept = [e for e, length in zip(examples, lengths, strict=True) if length + room <= limit]
    dropped = [e for e, length in zip(examples, lengths, strict=True) if length + room > limit]
    for source in sorted({e.source for e in dropped}):
        count = sum(e.source == source for e in dropped)
        say(f"note: {count} requests of {source} do not fit into {limit} tokens with their reply and are left out")
    if not kept:
        raise FitError(f"no request fits into the model's {limit} tokens with {room} reply tokens")
    return kept


def sources_to_leave_out(examples: Sequence[Example]) -> list[str]:
    """Sources without which both labels are still there, each in two groups at least (one may have to be tested on)."""
    found = []
    for source in sorted({e.source for e in examples}):
        groups = {(e.unsafe, e.group or e.id) for e in examples if e.source != source}
        if min(sum(unsafe == label for unsafe, _ in groups) for label in (True, False)) > 1:
            found.append(source)
    return found


def leave_one_source_out(
    engine: Generating, examples: Sequence[Example], switch: Switch, settings: FitSettings
) -> dict[str, Any]:
    """Stage 1 fitted on all sources but one and tested on that one, for every source that can be missed
    (:func:`sources_to_leave_out`); in-distribution beside it.

    The same is done with the text n-gram baseline. Figures are plain JSON by reader, then source.
    """
    lm = engine.lm
    points = tuple(p for p in fit_points(lm.num_layers, settings) if p.position.kind != "pilot")
    sequences, lengths, texts = prompt_sequences(lm, list(examples))
    with lm.lock:
        acts = record(lm, sequences, lengths, points, texts=texts, dtype=torch.float32)
    labels = torch.tensor([e.unsafe for e in examples])
    named = set(sources_to_leave_out(examples))
    layers = tuple(switch.record["calibration"]["layers"])
    specs = {"stage1": stage1_spec(lm.num_layers, layers, settings), "text baseline": {"kind": "ngram"}}
    report: dict[str, Any] = {}
    for name, spec in specs.items():
        found = leave_one_out(
            partial(make_prober, spec), acts, labels, [e.source if e.source in named else "" for e in examples],
            clusters=[e.group or e.id for e in examples], seed=settings.seed,
        )
        report[name] = {source: asdict(metrics) for source, metrics in found.items()}
    return report
