"""JSONL in, JSONL out, resumable: what has been answered is kept, what has not is answered next
time.

Each finished batch is appended and flushed to disk. A run that was cut off, even in the middle of a
line, is resumed where it stopped; a run with another model, switch or options is refused. A request
that the engine cannot take (too long, refused by the chat template, or one on which it breaks down)
gets a row with the reason and holds nothing up. Knows nothing of how replies come about.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from safeswitch.core.errors import (
    ActivationError,
    ContextLengthError,
    DataError,
    SafeSwitchError,
    TemplateError,
)
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lines import append, rows_of_run, take_up
from safeswitch.core.lock import file_writer
from safeswitch.core.types import Decision, Example, Prompt, Reply, as_messages
from safeswitch.data.writers import to_row
from safeswitch.switch.engine import Engine, GenerationOptions
from safeswitch.switch.switch import Switch

_REQUESTS_OWN = (DataError, ContextLengthError, TemplateError)
"""Errors that a request brings about itself. Other deliberate ones are the run's: no request would
fare better."""


Screen = Callable[[Sequence[Prompt]], list[Decision]]
"""What stage 1 decides on each request, in order."""


@dataclass(frozen=True)
class Failed:
    """A request without a reply.

    Args:
        error: Why.
        foreseen: Whether it is the request's own for certain; else the engine broke down on it.
    """

    error: Exception
    foreseen: bool

    def describe(self, example: Example) -> str:
        """In words, with the request's id, file and line."""
        return f"{type(self.error).__name__}: {example.called}: {self.error}"


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


def reply_fields(reply: Reply) -> JsonObject:
    """What a row holds of a reply."""
    return {
        "reply": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        # a server counts tokens, and does not show them
        "reply_tokens": len(reply.token_ids) or reply.generated or 0,
        "decision": reply.decision.to_dict(),
    }


class Screening(Engine):
    """An engine that reads requests and answers none: a file of requests becomes a file of
    decisions.

    Args:
        screen: Reads the requests.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """Empty replies with the decisions; the switch is the one that ``screen`` has."""
        decisions = self._screen(prompts)
        return [Reply("", (), "stop", decision, 0) for decision in decisions]


def decision_fields(reply: Reply) -> JsonObject:
    """What a row of a file of decisions holds."""
    return {"flagged": reply.decision.fired, "decision": reply.decision.to_dict()}


def generate_file(
    engine: Engine,
    examples: Sequence[Example],
    out: Path,
    switch: Switch | None = None,
    *,
    identity: Mapping[str, str],
    chunk: int = 64,
    progress: Callable[[int], None] = lambda done: None,
    measured: Callable[[int], JsonMapping] = lambda rows: {},
    fields: Callable[[Reply], JsonObject] = reply_fields,
    also: Sequence[Path] = (),
    seed: int | None = None,
    **options: Any,
) -> Written:
    """Answer ``examples`` into ``out``.

    Args:
        engine: What generates.
        examples: Requests with unique ids; they need no label.
        out: JSONL file with ``id, request, prompt, label, source``, what else is known of the
            request (``messages`` where there are several, ``category, group, wrapper, answers,
            meta``) and either ``reply, finish_reason, prompt_tokens, reply_tokens, decision,
            seconds`` or ``error`` (its kind, the request's id, file and line, and why); ``request``
            is a hash of the messages, ``seconds`` the wall time of the request's batch, shared
            evenly. ``<out>.run.json`` stands beside it.
        switch: See :meth:`Engine.generate`.
        identity: What must be the same for a run to be resumed (model and switch fingerprints).
            Requests that were answered must be there again as they were; others may have come or
            gone.
        chunk: Requests between two writes.
        progress: Called with the number of rows written, resumed ones first.
        measured: Called after each chunk with its number of rows; what it gives is written into all
            of them.
        fields: What a row holds of a reply.
        also: Files of the same run that other workers have written, or are writing: what is
            answered there is taken over.
        seed: Sampling seed; what a request draws depends on it and on the request's id, wherever
            the run was cut.
        options: Of :meth:`Engine.generate`.

    Raises:
        DataError: no requests, or an id used twice.
        ArtifactError: ``out`` belongs to another run, is being written by another process, or
            cannot be written.
        SafeSwitchError: the engine breaks down on every request, or on one that it has answered
            before.
    """
    _check_ids(examples)
    run = {**identity, "options": json.loads(json.dumps({**options, "seed": seed}, default=str))}
    with file_writer(out):
        done = _done_before(out, also, run, examples)
        errors = sum("error" in row for row in done.values())
        progress(len(done))
        left = [e for e in examples if e.id not in done]
        # A request that was answered: asked again, it shows whether the engine still works.
        witness = next((e for e in examples if "error" not in done.get(e.id, {"error": ""})), None)
        for start in range(0, len(left), chunk):
            part = left[start : start + chunk]
            began = time.perf_counter()
            answers = _answer(engine, part, switch, seed, options)
            witness = _first_answered(part, answers) or witness
            _check_engine(engine, part, answers, witness, switch, options)
            cost = {"seconds": (time.perf_counter() - began) / len(part), **measured(len(part))}
            errors += sum(isinstance(answer, Failed) for answer in answers)
            append(out, [_row(e, a, fields) | cost for e, a in zip(part, answers, strict=True)])
            progress(len(part))
        return Written(len(left), len(examples), errors)


def _done_before(
    out: Path, also: Sequence[Path], run: JsonMapping, examples: Sequence[Example]
) -> Mapping[str, JsonObject]:
    """Rows that earlier runs have left in ``out``, by id, and those of other workers, which are
    taken over into it."""
    requests = {example.id: request_hash(example) for example in examples}
    done: Mapping[str, JsonObject] = take_up(out, run, requests)
    for other in also:
        found = rows_of_run(other, run, requests)
        new = [row for name, row in found.items() if name not in done]
        append(out, new)
        done = {**found, **done}
    return done


def _check_ids(examples: Sequence[Example]) -> None:
    """Refuse an input without requests, or with two of one id.

    Raises:
        DataError: which.
    """
    if not examples:
        raise DataError("generate: the input has no requests")
    uses = Counter(example.id for example in examples)
    twice = [name for name, count in uses.items() if count > 1]
    if twice:
        raise DataError(
            f"generate: ids must be unique; used more than once: {', '.join(map(repr, twice[:5]))}"
        )


def _first_answered(part: Sequence[Example], answers: Sequence[Reply | Failed]) -> Example | None:
    """The first request that has a reply."""
    for example, answer in zip(part, answers, strict=True):
        if isinstance(answer, Reply):
            return example
    return None


def _answer(
    engine: Engine,
    part: Sequence[Example],
    switch: Switch | None,
    seed: int | None,
    options: JsonMapping,
) -> list[Reply | Failed]:
    """Replies, with the reason in place of one where there is none: halving a batch that fails
    finds the guilty."""
    seeds = None if seed is None else [_seed(seed, e) for e in part]
    try:
        return list(engine.generate(part, switch, seed=seeds, **options))
    except _REQUESTS_OWN as error:
        failed = Failed(error, foreseen=True)
    except SafeSwitchError as error:
        if not isinstance(error, ActivationError):
            raise
        failed = Failed(error, foreseen=False)
    except Exception as error:
        # whatever one request brings about in the engine, the others are to be answered
        failed = Failed(error, foreseen=False)
    if len(part) == 1:
        return [failed]
    middle = len(part) // 2
    first = _answer(engine, part[:middle], switch, seed, options)
    return [*first, *_answer(engine, part[middle:], switch, seed, options)]


def _check_engine(
    engine: Engine,
    part: Sequence[Example],
    answers: Sequence[Reply | Failed],
    witness: Example | None,
    switch: Switch | None,
    options: JsonMapping,
) -> None:
    """Tell requests that break the engine from an engine that is broken: the latter no longer
    answers what it answered before.

    Raises:
        SafeSwitchError: nothing of ``part`` was answered, and ``witness`` is not answered either.
    """
    failed = [
        (e, a)
        for e, a in zip(part, answers, strict=True)
        if isinstance(a, Failed) and not a.foreseen
    ]
    if not failed or any(isinstance(a, Reply) for a in answers):
        return
    if witness is not None and isinstance(
        _answer(engine, [witness], switch, None, options)[0], Reply
    ):
        return
    example, first = failed[0]
    since = (
        "no request has been answered"
        if witness is None
        else f"what it answered before ({witness.called}) fails too"
    )
    raise SafeSwitchError(
        f"generate: the engine breaks down, and {since}; {first.describe(example)}"
    ) from first.error


def _row(
    example: Example, answer: Reply | Failed, fields: Callable[[Reply], JsonObject]
) -> JsonObject:
    known = {name: value for name, value in to_row(example).items() if name != "reply"}
    first = {
        "id": example.id,
        "request": request_hash(example),
        "prompt": example.prompt,
        "label": example.label or None,
    }
    row: JsonObject = {**first, "source": example.source, **known}
    if isinstance(answer, Failed):
        return {**row, "error": answer.describe(example)}
    return {**row, **fields(answer)}


def request_hash(example: Example) -> str:
    """SHA-256 (first 16 hex digits) of the messages."""
    messages = as_messages(example)
    images = [
        (i, picture.at, picture.key)
        for i, message in enumerate(messages)
        for picture in message.images
    ]
    return hashlib.sha256(f"{messages!r}{images or ''}".encode()).hexdigest()[:16]


def _seed(seed: int, example: Example) -> int:
    """A sampling seed for one request, in 0..2**63-1."""
    return int.from_bytes(hashlib.sha256(f"{seed} {example.id}".encode()).digest()[:8]) >> 1
