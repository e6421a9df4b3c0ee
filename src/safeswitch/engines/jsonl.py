"""JSONL in, JSONL out, resumable: what has been answered is kept, what has not is answered next time.

Each finished batch is appended and flushed to disk. A run that was cut off, even in the middle of a line, goes on where it
stopped; a run with another model, switch or options is refused. Knows nothing of how replies come about.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError, DataError
from safeswitch.core.types import Example, Reply
from safeswitch.engines.base import Engine
from safeswitch.switch.switch import Switch


def generate_file(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    switch: Switch | None = None,
    *,
    identity: Mapping[str, str],
    chunk: int = 64,
    progress: Callable[[int], None] = lambda done: None,
    seed: int | None = None,
    **options: Any,
) -> int:
    """Answer ``examples`` into ``out``; returns how many replies were newly written.

    Args:
        engine: What generates.
        examples: Requests with unique ids.
        out: JSONL file with ``id, prompt, reply, finish_reason, decision``; ``<out>.run.json`` stands beside it.
        switch: See :meth:`Engine.generate`.
        identity: What must be the same for a run to be resumed (model and switch fingerprints).
        chunk: Requests between two writes.
        progress: Called with the number of replies written, resumed ones first.
        seed: Sampling seed; the i-th request of the file draws from ``seed + i`` wherever the run was cut.
        options: Of :meth:`Engine.generate`.

    Raises:
        DataError: no requests, or an id used twice.
        ArtifactError: ``out`` belongs to another run, or cannot be written.
    """
    if not examples:
        raise DataError("generate: the input has no requests")
    twice = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if twice:
        raise DataError(f"generate: ids must be unique; used more than once: {', '.join(map(repr, twice[:5]))}")
    run = {**identity, "options": json.loads(json.dumps({**options, "seed": seed}, default=str)), "data": _hash(examples)}
    done = _resume(out, run)
    progress(len(done))
    left = [(i, e) for i, e in enumerate(examples) if e.id not in done]
    for start in range(0, len(left), chunk):
        part = left[start : start + chunk]
        seeds = None if seed is None else [seed + i for i, _ in part]
        replies = engine.generate([e for _, e in part], switch, seed=seeds, **options)
        _append(out, [_row(e, r) for (_, e), r in zip(part, replies, strict=True)])
        progress(len(part))
    return len(left)


def _resume(out: Path, run: dict[str, Any]) -> set[str]:
    """Ids already answered; a half-written last line is cut off."""
    stamp = out.with_name(out.name + ".run.json")
    if not out.exists():
        write_json(stamp, run)
        return set()
    if not stamp.exists():
        raise ArtifactError(f"{out} exists and was not written by this command; name another file or remove it")
    if (before := read_json(stamp)) != run:
        differs = ", ".join(key for key in run if before.get(key) != run[key])
        raise ArtifactError(f"{out} belongs to a run with another {differs}; name another file or remove it")
    text = out.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) != len(text):
        with out.open("r+b") as stream:
            stream.truncate(len(whole))
    try:
        return {str(json.loads(line)["id"]) for line in whole.splitlines()}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{out} holds a line that is no reply: {error}") from error


def _append(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error}; what was answered before is kept, run again to go on") from error


def _row(example: Example, reply: Reply) -> dict[str, Any]:
    return {
        "id": example.id, "prompt": example.prompt, "label": example.label, "source": example.source,
        "reply": reply.text, "finish_reason": reply.finish_reason, "decision": reply.decision.to_dict(),
    }


def _hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.id, example.messages)).encode())
    return digest.hexdigest()[:16]
