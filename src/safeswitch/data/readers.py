"""Examples from JSONL and CSV files and from the hub, with every fault of a source reported at
once.

Knows files. The schema is in :mod:`safeswitch.data.rows`; knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from safeswitch.core.errors import DataError, SettingError, check_choice
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import LABELS, Example, Message
from safeswitch.data.files import Row, csv_rows, jsonl_rows
from safeswitch.data.hub import hub_rows
from safeswitch.data.rows import CONTEXT_ROLES, ContextRole, to_example

_SUFFIXES = (".jsonl", ".ndjson", ".csv")
_OTHER_FILES = (
    ".json",
    ".txt",
    ".tsv",
    ".parquet",
    ".arrow",
    ".gz",
    ".zip",
    ".xlsx",
    ".yaml",
    ".yml",
)
_SHOWN_FAULTS = 20
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_examples(
    source: str | Path,
    *,
    label: str | None = None,
    labelled: bool = True,
    limit: int | None = None,
    prompt_field: str = "prompt",
    context: ContextRole = "auto",
    category: str | None = None,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
) -> list[Example]:
    """Read a ``.jsonl`` or ``.csv`` file, or a hub data set ``owner/name``.

    Args:
        source: File, or hub id. What exists on disk, or ends in a known suffix, is a file.
        label: ``safe`` or ``unsafe`` for rows that carry no label.
        labelled: Whether every row must have a label then; with False, the label of a row without
            one is empty.
        limit: Read only the first so many rows.
        prompt_field: Field that holds the prompt (``goal`` in AdvBench's CSV, for one).
        context: Where a row's ``context`` goes: ``prompt`` (in front of it), ``system`` (as system
            message), or ``auto``: system for prompt-injection rows, prompt for all others.
        category: Category of rows that carry none.
        split: For hub data sets: which split.
        config: For hub data sets: which configuration.
        revision: For hub data sets: commit or tag; None takes the newest.

    Returns:
        The examples, in file order; their ``place`` is file and line.

    Raises:
        DataError: no such file, unknown suffix, nothing in it, or unusable rows: all of them in one
            message (the first 20 spelled out), each with file, line, field and what is allowed.
        SettingError: an argument outside its allowed values.
    """
    check_choice("read_examples", "context", context, CONTEXT_ROLES)
    if label is not None:
        check_choice("read_examples", "label", label, LABELS)
    if limit is not None and limit < 1:
        raise SettingError(f"read_examples: limit must be 1 or more; got {limit}")
    rows, origin = _open(source, split, config, revision)
    settings = {
        "origin": origin,
        "label": label,
        "labelled": labelled,
        "prompt_field": prompt_field,
        "context": context,
    }
    examples, faults = _sort_out(islice(rows, limit), settings)
    if faults:
        raise DataError(_report([f"{source}, {fault}" for fault in faults]))
    if not examples:
        raise DataError(f"{source} holds no rows")
    beside = Path(source).parent
    read: list[Example] = []
    for e in examples:
        turns = tuple(_beside(turn, beside) for turn in e.messages)
        place = f"{source}, {e.place}"
        read.append(replace(e, messages=turns, place=place, category=e.category or category or ""))
    return read


def _beside(message: Message, folder: Path) -> Message:
    """The turn with the paths of its images taken from the data file's folder."""
    if not message.images:
        return message
    images = [
        replace(p, source=str(folder / p.source)) if isinstance(p.source, str) else p
        for p in message.images
    ]
    return replace(message, images=tuple(images))


def _sort_out(rows: Iterable[Row], settings: JsonMapping) -> tuple[list[Example], list[str]]:
    """The usable rows as examples, and one line about each of the others."""
    examples: list[Example] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            if isinstance(row, str):
                raise DataError(row)
            example = to_example(row, number=number, **settings)
            if example.id in seen:
                raise DataError(
                    f"field 'id': {example.id!r} was used on line {seen[example.id]} already"
                )
        except DataError as error:
            faults.append(f"line {number}: {error}")
            continue
        seen[example.id] = number
        examples.append(replace(example, place=f"line {number}"))
    return examples, faults


def _report(faults: list[str]) -> str:
    more = len(faults) - _SHOWN_FAULTS
    head = f"{len(faults)} unusable row{'s' if len(faults) > 1 else ''}:\n  "
    return head + "\n  ".join(faults[:_SHOWN_FAULTS]) + (f"\n  and {more} more" if more > 0 else "")


def _open(
    source: str | Path, split: str, config: str | None, revision: str | None
) -> tuple[Iterator[Row], str]:
    path = Path(source)
    if (
        not path.exists()
        and path.suffix not in (*_SUFFIXES, *_OTHER_FILES)
        and _HUB_ID.fullmatch(str(source))
    ):
        return hub_rows(str(source), split=split, config=config, revision=revision), str(source)
    if not path.is_file():
        raise DataError(
            f"{source} is not a file; give a {', '.join(_SUFFIXES)} file or a hub id 'owner/name'"
        )
    if path.suffix not in _SUFFIXES:
        raise DataError(
            f"{source}: unknown file type {path.suffix!r}; known: {', '.join(_SUFFIXES)}"
        )
    return (csv_rows(path) if path.suffix == ".csv" else jsonl_rows(path)), path.stem
