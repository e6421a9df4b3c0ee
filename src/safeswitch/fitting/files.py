"""From files to a switch folder: what ``safeswitch fit`` does.

Knows files, fitting and the leave-one-source-out report. Knows nothing of the command line.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safeswitch.core.artifact import check_writable
from safeswitch.core.errors import DataError, FitError, SettingError, TemplateError
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import Example
from safeswitch.data import starter
from safeswitch.data.contradictions import contradictions, describe
from safeswitch.data.leakage import leaks
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import fit_split
from safeswitch.fitting.left_out import left_out_report
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.switch import Switch

Say = Callable[[str], None]


def read_sources(
    sources: Sequence[str], *, label: str | None, limit: int | None, with_starter: bool = False
) -> list[Example]:
    """Read every file or hub data set, its ids made unique by its name; none: the starter set
    alone.

    Args:
        sources: Files and hub data sets.
        label: Of rows that have none.
        limit: Most rows of each source that the rows name (a row that names none is of its file's),
            chosen evenly, each label and part in proportion; None takes all.
        with_starter: Add the starter set; the rows are mixed then.

    Raises:
        SettingError: ``limit`` below 1, or a label for the starter set alone.
        FitError: one label only.
    """
    if limit is not None and limit < 1:
        raise SettingError(f"read_sources: limit must be 1 or more, or None; got {limit}")
    if label is not None and not sources:
        raise SettingError(
            f"read_sources: the label {label!r} is for rows of data, and none are given"
        )
    examples: list[Example] = []
    *names, shipped = source_names([*sources, "starter"])
    for source, name in zip(sources, names, strict=True):
        rows = read_examples(source, label=label)
        stem = Path(source).stem
        examples += [
            replace(e, id=f"{name}/{e.id}", source=name if e.source in ("", stem) else e.source)
            for e in rows
        ]
    if with_starter or not sources:
        examples += [replace(e, id=f"{shipped}/{e.id}") for e in starter.fitting_rows()]
    if with_starter:
        examples = starter.mixed(examples)
    if limit is not None:
        examples = _thinned(examples, limit)
    unsafe = sum(e.unsafe for e in examples)
    if unsafe in (0, len(examples)):
        raise FitError(
            f"fitting needs unsafe and safe requests; the {len(examples)} rows read are all "
            f"{'unsafe' if unsafe else 'safe'}; add --data with the other label, or leave "
            "--without-starter out"
        )
    return examples


def source_names(sources: Sequence[str]) -> list[str]:
    """A short name for each source: the file's name without its ending, or as much of the path as
    tells it apart."""
    parts = [Path(source).with_suffix("").parts for source in sources]
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        names = [
            n if names.count(n) == 1 else "/".join(p[-depth:])
            for n, p in zip(names, parts, strict=True)
        ]
    return [n if names.count(n) == 1 else f"{n}#{i + 1}" for i, n in enumerate(names)]


def _thinned(rows: Sequence[Example], limit: int) -> list[Example]:
    """At most ``limit`` rows of each source, in their order.

    They are taken from one label and part after the other, since files often alternate.
    """
    by_source = defaultdict(list)
    for i, row in enumerate(rows):
        by_source[row.source].append(i)
    chosen: set[int] = set()
    for own in by_source.values():
        lined_up = sorted(own, key=lambda i: (rows[i].label, rows[i].meta.get("split", "")))
        count = min(limit, len(own))
        chosen.update(lined_up[(2 * i + 1) * len(own) // (2 * count)] for i in range(count))
    return [row for i, row in enumerate(rows) if i in chosen]


def fit_files(
    engine: ReadingEngine,
    sources: Sequence[str],
    out: Path,
    settings: FitSettings,
    *,
    label: str | None = None,
    limit: int | None = None,
    with_starter: bool = False,
    leave_out: bool = True,
    say: Say = lambda text: None,
    track: Track = untracked,
) -> Switch:
    """Read, fit, save and report; the folder is written when fitting has succeeded, and again with
    the report.

    Without ``sources`` the starter set is fitted on; ``with_starter`` adds it to them.

    Raises:
        ArtifactError: ``out`` cannot be written.
        DataError, FitError, ContextLengthError: see :func:`read_sources` and :meth:`Switch.fit`.
    """
    check_writable(out)
    read = read_sources(sources, label=label, limit=limit, with_starter=with_starter)
    examples = fitting_requests(engine, read, settings, say)
    parts = fit_split(examples, settings.seed)
    taken = {e.id for part in parts.values() for e in part}
    if len(taken) < len(examples):
        say(f"note: {len(examples) - len(taken)} requests are marked as held and are left out")
        examples = [e for e in examples if e.id in taken]
    for part, consequence in (
        ("validation", "figures flatter"),
        ("calibration", "the threshold may be too low"),
    ):
        twice = leaks(parts["train"], parts[part])
        if twice:
            say(
                f"note: {len(twice)} {part} requests nearly repeat a training request; "
                f"{consequence}"
            )
    switch = Switch.fit(engine, parts, settings, say=say, track=track)
    switch = replace(
        switch, record={**switch.record, "rows": {"read": len(read), "used": len(examples)}}
    )
    switch.save_pretrained(out)
    if leave_out:
        say("stage 1: leaving out one source and one jailbreak template at a time")
        report = left_out_report(engine, examples, settings, track=track)
        if not report:
            say(
                "note: nothing can be left out, since without any source a label would be missing; "
                "no such figures"
            )
        switch = replace(switch, record={**switch.record, "left_out": report})
        switch.save_pretrained(out)
    return switch


def fitting_requests(
    engine: ReadingEngine, examples: Sequence[Example], settings: FitSettings, say: Say
) -> list[Example]:
    """Requests that can be learned from; the others are counted and named by source and reason, not
    silently lost.

    Left out are rows of contradictory labels, conversations that the model cannot be given, and
    those without room for a reply.

    Raises:
        FitError: less than half is left, or one label only.
    """
    wrong = contradictions(examples)
    if wrong:
        say(f"note: {describe(wrong)}; all of them are left out")
    twice = {row.id for rows in wrong for row in rows}
    reasons = {e.id: "has two labels" for e in examples if e.id in twice}
    room = FitPlan(engine.lm.num_layers, settings).room
    for example in examples:
        if example.id not in reasons and (why := _unfit(engine, example, room)):
            reasons[example.id] = why
    kept = [e for e in examples if e.id not in reasons]
    _tell_left_out([e for e in examples if e.id in reasons and e.id not in twice], reasons, say)
    _check_enough(kept, examples, reasons)
    return kept


def _unfit(engine: ReadingEngine, example: Example, room: int) -> str:
    """Why the model cannot be fitted on a request with ``room`` reply tokens; empty where it
    can."""
    limit = engine.lm.context_length
    try:
        length = len(engine.lm.inputs([example], check=False)[0].ids)
    except (DataError, TemplateError) as error:
        return str(error)
    if example.unsafe and example.reply:
        room = max(room, len(engine.lm.tokenizer(example.reply)["input_ids"]) + 1)
    if limit is not None and length + room > limit:
        return f"does not fit into {limit} tokens with its reply ({length} and {room})"
    return ""


def _tell_left_out(dropped: Sequence[Example], reasons: dict[str, str], say: Say) -> None:
    counts = Counter(e.source for e in dropped)
    for source in sorted(counts):
        first = next(e for e in dropped if e.source == source)
        say(
            f"note: {counts[source]} requests of {source} cannot be given to the model and are "
            f"left out; the first, {first.called}: {reasons[first.id]}"
        )


def _check_enough(
    kept: Sequence[Example], read: Sequence[Example], reasons: dict[str, str]
) -> None:
    unsafe = sum(e.unsafe for e in kept)
    if 2 * len(kept) >= len(read) and unsafe not in (0, len(kept)):
        return
    first = next((e for e in read if e.id in reasons), None)
    why = (
        f"; the first that is left out, {first.called}: {reasons[first.id]}"
        if first is not None
        else ""
    )
    raise FitError(
        f"only {len(kept)} of {len(read)} requests can be learned from, {unsafe} of them unsafe; "
        f"at least half must be left, with both labels{why}"
    )
