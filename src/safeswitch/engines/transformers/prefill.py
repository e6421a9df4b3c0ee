"""Prefills: the start of a reply that the client has written, for the model to go on from.

The prompt's last token is then the client's own, of an affirmation say, and hides the request from
a stage 1 that reads there; and a refusal head goes on with what was begun. So stage 1 also reads
the conversation without the prefill. Where it flags that, the action answers from there. Stage 2 is
not asked, since it reads how the model's own reply begins.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeswitch.core.types import Decision, Message
from safeswitch.engines.transformers.prompt_end import judge_prompts
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.gate import Gate


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
    encoded: Sequence[Encoded],
) -> list[Decision | None]:
    """What stage 1 decides on conversations without their prefill; None where it clears them.

    Args:
        lm: The model.
        gate: For which :func:`reads_prefill` holds.
        actuator: What is done to those it flags.
        encoded: Inputs of n conversations, the prefill left out.
    """
    found = judge_prompts(lm, gate, actuator, encoded)
    return [session.decision if session.decision.fired else None for session in found]
