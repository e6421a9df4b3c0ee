"""Replies that the client has begun, for the model to go on from.

Their last token is the client's own, an affirmation say, and hides the request from a stage 1 that reads there; and a refusal
head goes on with what was begun. So stage 1 also reads the conversation without the begun reply, and where it flags that, the
action answers from there. Stage 2 is not asked: it reads how the model's own reply begins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from safeswitch.activations.record import prompt_text, record
from safeswitch.core.types import Decision, Message
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.gate import Gate


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends in a begun reply to something."""
    return len(messages) > 1 and messages[-1].role == "assistant"


def reads_begun(gate: Gate) -> bool:
    """Whether the gate has a stage 1 that can read without the begun reply."""
    return gate.stage1 is not None and not gate.always and not gate.apart_points


def judge_begun(
    lm: LanguageModel, gate: Gate, conversations: Sequence[tuple[Message, ...]], encoded: Sequence[Encoded], kind: str
) -> list[Decision | None]:
    """What stage 1 says of conversations whose begun reply was left out; None where it is silent.

    Args:
        lm: The model.
        gate: For which :func:`reads_begun` holds.
        conversations: n conversations, without the begun reply.
        encoded: Their inputs.
        kind: Kind of the action that the decisions name.
    """
    start = time.perf_counter()
    rows = [one.ids for one in encoded]
    acts = record(
        lm, rows, [len(row) for row in rows], gate.prompt_points, texts=[prompt_text(c) for c in conversations],
        visions=[one.vision for one in encoded], dtype=torch.float32,
    )
    verdict = gate.at_prompt(acts)
    share = (time.perf_counter() - start) / len(rows)
    found: list[Decision | None] = []
    flagged = (verdict.fired | verdict.pending).tolist()
    for fires, score, error in zip(flagged, verdict.scores.tolist(), verdict.errors, strict=True):
        scores = {} if error else {"stage1": score}
        made = Decision(
            True, "error" if error else "stage1", scores, gate.thresholds(), rule=gate.rule, error=error, actuator=kind,
            latency_s=share,
        )
        found.append(made if fires else None)
    return found
