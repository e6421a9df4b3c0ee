"""JSONL in, JSONL out, resumable: what has been answered is kept, what has not is answered next time.

Each finished batch is appended and flushed to disk. A run that was cut off, even in the middle of a line, goes on where it
stopped; a run with another model, switch or options is refused. A request that the engine cannot take (too long, say) gets a
row with the reason and holds nothing up. Knows nothing of how replies come about.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError, ContextLengthError, DataError
from safeswitch.core.types import Example, Reply
from safeswitch.engines.base import Engine
from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class Written:
    """What a run did.

    Args:
        new: Rows newly written.
        rows: Rows in the file.
        errors: Rows in the file that carry an error in place of a reply.
    """

    new: int
    rows: int
    errors: int


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
) -> Written:
    """Answer ``examples`` into ``out``.

    Args:
        engine: What generates.
        examples: Requests with unique ids; they need no label.
        out: JSONL file with ``id, request, prompt, label, source`` and either ``reply, finish_reason, decision`` or
            ``error``; ``request`` is a hash of the messages. ``<out>.run.json`` stands beside it.
        switch: See :meth:`Engine.generate`.
        identity: What must be the same for a run to be resumed (model and switch fingerprints). Requests that were answered
            must be there again as they were; others may have come or gone.
        chunk: Requests between two writes.
        progress: Called with the number of rows written, resumed ones first.
        seed: Sampling seed; what a request draws depends on it and on the request's id, wherever the run was cut.
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
    run = {**identity, "options": json.loads(json.dumps({**options, "seed": seed}, default=str))}
    done = _resume(out, run, {e.id: _hash(e) for e in examples})
    errors = sum(done.values())
    progress(len(done))
    left = [e for e in examples if e.id not in done]
    for start in range(0, len(left), chunk):
        part = left[start : start + chunk]
        answers = _answer(engine, part, switch, seed, options)
        errors += sum(isinstance(a, str) for a in answers)
        _append(out, [_row(e, a) for e, a in zip(part, answers, strict=True)])
        progress(len(part))
    return Written(len(left), len(examples), errors)


def _answer(
    engine: Engine, part: Sequence[Example], switch: Switch | None, seed: int | None, options: Mapping[str, Any]
) -> list[Reply | str]:
    """Replies, with the reason in place of one where a request cannot be taken: halving a refused batch finds those."""
    seeds = None if seed is None else [_seed(seed, e) for e in part]
    try:
        return list(engine.generate(part, switch, seed=seeds, **options))
    except (DataError, ContextLengthError) as error:
        if len(part) == 1:
            return [f"{type(error).__name__}: {error}"]
    middle = len(part) // 2
    return [a for half in (part[:middle], part[middle:]) for a in _answer(engine, half, switch, seed, options)]


def _resume(out: Path, run: dict[str, Any], requests: Mapping[str, str]) -> dict[str, bool]:
    """Ids already written, and whether with an error; a half-written last line is cut off."""
    stamp = out.with_name(out.name + ".run.json")
    if not out.exists():
        write_json(stamp, run)
        return {}
    if not stamp.exists():
        raise ArtifactError(f"{out} exists and was not written by this command; name another file or remove it")
    if (before := read_json(stamp)) != run:
        differs = ", ".join(key for key in {**run, **before} if before.get(key) != run.get(key))
        raise ArtifactError(f"{out} belongs to a run with another {differs}; name another file or remove it")
    text = out.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    done = _written(out, whole, requests)
    if len(whole) != len(text):
        with out.open("r+b") as stream:
            stream.truncate(len(whole))
    return done


def _written(out: Path, whole: bytes, requests: Mapping[str, str]) -> dict[str, bool]:
    """Ids in ``whole``, the lines of ``out``, and whether with an error."""
    done: dict[str, bool] = {}
    try:
        for row in map(json.loads, whole.splitlines()):
            if requests.get(row["id"]) != row["request"]:
                raise ArtifactError(
                    f"{out} answers a request {row['id']!r} that the input does not hold, or holds with other words; "
                    "name another file or remove it"
                )
            done[row["id"]] = "error" in row
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{out} holds a line that is no reply: {error}") from error
    return done


def _append(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with out.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ArtifactError(f"cannot write {out}: {error}; what was answered before is kept, run again to go on") from error


def _row(example: Example, answer: Reply | str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": example.id, "request": _hash(example), "prompt": example.prompt, "label": example.label or None,
        "source": example.source,
    }
    if isinstance(answer, str):
        return {**row, "error": answer}
    return {**row, "reply": answer.text, "finish_reason": answer.finish_reason, "decision": answer.decision.to_dict()}


def _hash(example: Example) -> str:
    return hashlib.sha256(repr(example.messages).encode()).hexdigest()[:16]


def _seed(seed: int, example: Example) -> int:
    """A sampling seed for one request, in 0..2**63-1."""
    return int.from_bytes(hashlib.sha256(f"{seed} {example.id}".encode()).digest()[:8]) >> 1
