"""Replies of the untouched model with the hidden states behind them: what fitting reads.

States are read in the pass that replies; those of whole replies in a teacher-forced pass. Knows
nothing of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from safeswitch.activations.record import Recording, check_points, record
from safeswitch.activations.states import Activations
from safeswitch.core.types import RUNNING, Prompt, ReadPoint, Reply, as_messages
from safeswitch.engines.transformers.batch import BatchRunner
from safeswitch.engines.transformers.recorder import RecordingRows
from safeswitch.engines.transformers.requests import Request
from safeswitch.models.language_model import LanguageModel

Progress = Callable[[int], None]
"""Called with the number of prompts done since the last call."""


def reply_and_read(
    runner: BatchRunner,
    requests: Sequence[Request],
    points: Sequence[ReadPoint],
    progress: Progress | None = None,
) -> tuple[list[Reply], Activations]:
    """Replies to n requests, and states at ``points``, ``[n, d]`` float32 on the host, read while
    they are written.

    Args:
        runner: Runs the untouched model; the caller holds the model's lock.
        requests: What is replied to.
        points: Any but ``answer`` points.
        progress: Told of rows replied to.

    Raises:
        ActivationError: states that are not finite.
        SettingError: no points, or points that do not exist.
    """
    lm = runner.lm
    check_points(lm, points)
    texts = [lm.prompt_text(request.ids) for request in requests]
    lengths = [len(request.ids) for request in requests]
    recording = Recording(lengths, torch.device("cpu"), torch.float32)
    replies: dict[int, Reply] = {}
    for batch in runner.batches(requests):
        rows = [request.index for request in batch]
        recorder = RecordingRows(lm, [lengths[i] for i in rows], [texts[i] for i in rows], points)
        replies.update(zip(rows, runner.decode(batch, recorder, {}), strict=True))
        recorder.hand_over(rows, recording)
        if progress is not None:
            progress(len(batch))
    return [replies[i] for i in range(len(requests))], recording.activations(points, texts)


def read_states(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    points: Sequence[ReadPoint],
    progress: Progress | None = None,
) -> Activations:
    """States at ``points``, ``[n, d]`` float32 on the host, of n prompts with their replies.

    Args:
        lm: The model; the caller holds its lock.
        prompts: Texts, message lists or examples.
        replies: One a prompt, or none at all to read prompts alone.
        points: What to read; a reply that ends before a pilot point gives the state of its last
            token.
        progress: Told of rows read.

    Raises:
        ActivationError: states that are not finite.
        SettingError: ``answer`` points, and a model without known thinking marks.
    """
    encoded = lm.inputs(list(prompts))
    rows = [one.ids for one in encoded]
    answers = _answer_starts(lm, prompts, rows, replies, points)
    deepest = max((p.position.index for p in points if p.position.kind in RUNNING), default=0)
    sequences = [list(row) for row in rows]
    if replies:
        for sequence, reply, answer in zip(sequences, replies, answers, strict=True):
            sequence += reply.token_ids[: answer + deepest]
    return record(
        lm,
        sequences,
        [len(row) for row in rows],
        points,
        texts=[lm.prompt_text(row) for row in rows],
        answers=answers,
        visions=[one.vision for one in encoded],
        dtype=torch.float32,
        progress=None if progress is None else _since_last(progress),
    )


def _answer_starts(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    rows: Sequence[list[int]],
    replies: Sequence[Reply],
    points: Sequence[ReadPoint],
) -> list[int]:
    """Reply tokens in front of each answer; 0 where no point is counted from there."""
    if not replies or not any(point.position.kind == "answer" for point in points):
        return [0] * len(rows)
    found: list[int] = []
    for prompt, ids, reply in zip(prompts, rows, replies, strict=True):
        found.append(lm.answer_start(as_messages(prompt), ids, reply.token_ids))
    return found


def whole_prompts(progress: Progress, passes: int) -> Progress:
    """Counts the rows of ``passes`` passes over the prompts, and reports those that are through all
    of them."""
    left = 0

    def report(rows: int) -> None:
        nonlocal left
        done, left = divmod(left + rows, passes)
        progress(done)

    return report


def _since_last(progress: Progress) -> Callable[[int, int], None]:
    """Turns what is done so far into what is done since the last call."""
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal before
        progress(done - before)
        before = done

    return report
