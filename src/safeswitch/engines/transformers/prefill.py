"""Prefills: the start of a reply that the client has written, for the model to go on from.

The prompt's last token is then the client's own, of an affirmation say, and hides the request from
a stage 1 that reads there; and a refusal head goes on with what was begun. So stage 1 also reads
the conversation without the prefill. Where it flags that, the action answers from there. Stage 2 is
not asked, since it reads how the model's own reply begins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from safeswitch.activations.record import record
from safeswitch.core.types import Decision, Message
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.gate import Gate
from safeswitch.switch.session import Session, at_prompt


def is_prefill(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends in a prefill that follows something."""
    return len(messages) > 1 and messages[-1].role == "assistant"


def reads_prefill(gate: Gate) -> bool:
    """Whether the gate has a stage 1 that can read without the prefill."""
    return gate.stage1 is not None and not gate.always and not gate.apart_points


def judge_prefill(
    lm: LanguageModel,
    gate: Gate,
    actuator: Actuator,
    conversations: Sequence[tuple[Message, ...]],
    encoded: Sequence[Encoded],
) -> list[Decision | None]:
    """What stage 1 decides on conversations without their prefill; None where it clears them.

    Args:
        lm: The model.
        gate: For which :func:`reads_prefill` holds.
        actuator: What is done to those it flags.
        conversations: n conversations, the prefill left out.
        encoded: Their inputs.
    """
    started = time.perf_counter()
    rows = [one.ids for one in encoded]
    activations = record(
        lm,
        rows,
        [len(row) for row in rows],
        gate.prompt_points,
        texts=[lm.prompt_text(row) for row in rows],
        visions=[one.vision for one in encoded],
        dtype=torch.float32,
    )
    sessions = [Session.begin(gate, actuator)] * len(rows)
    found = at_prompt(sessions, activations, started, final=[True] * len(rows))
    return [session.decision if session.decision.fired else None for session in found]
