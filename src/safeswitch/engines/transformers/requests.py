"""Prompts on their way into the engine: checked, encoded, with what each needs to be run.

Knows nothing of batches or decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from safeswitch.core.errors import ContextLengthError, DataError, SettingError
from safeswitch.core.types import Decision, Message, Prompt, Tokens, as_messages
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded, Vision
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class Request:
    """One prompt on its way through the engine.

    Args:
        index: Its place among the prompts.
        messages: The conversation.
        ids: Its tokens.
        seed: Sampling seed.
        limit: Most reply tokens.
        strength: Of the switch's steering, where it is not the switch's own.
        vision: Its images.
        opened: What the prompt says of the thinking of its reply.
        decision: What an earlier reading decided, where the request is run again.
        discarded: Tokens that were generated for it before, where it is run again.
    """

    index: int
    messages: tuple[Message, ...]
    ids: list[int]
    seed: int | None
    limit: int
    strength: float | None = None
    vision: Vision = field(default_factory=dict)
    opened: bool | None = False
    decision: Decision | None = None
    discarded: int = 0


def make_requests(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    switch: Switch,
    limits: Sequence[int],
    seeds: Sequence[int | None],
    strengths: Sequence[float | None],
) -> list[Request]:
    """A request for each prompt, with room for its reply in every form in which it may be read.

    Raises:
        DataError: an empty prompt, or images where the gate reads in a pass that takes none.
        ContextLengthError: a prompt that leaves no room for the reply, as it is or with a system
            text in front.
        SettingError: a prompt given as tokens, and an action that edits conversations.
    """
    conversations = [as_messages(prompt) for prompt in prompts]
    readable: list[Prompt] = []
    for prompt, messages in zip(prompts, conversations, strict=True):
        readable.append(prompt if isinstance(prompt, Tokens) else messages)
    encoded = lm.inputs(readable, room=[reply_room(switch.gate, limit) for limit in limits])
    check_images(switch.gate, encoded)
    if switch.actuator.place == "prompt":
        if any(isinstance(prompt, Tokens) for prompt in prompts):
            kind = type(switch.actuator).__name__
            raise SettingError(
                f"generate: {kind} edits conversations; a prompt given as tokens is none"
            )
        edited(lm, switch.actuator, conversations, limits)
    requests: list[Request] = []
    for i, (messages, one) in enumerate(zip(conversations, encoded, strict=True)):
        requests.append(
            Request(
                i,
                messages,
                one.ids,
                seeds[i],
                limits[i],
                strengths[i],
                one.vision,
                lm.thinking_opened(messages, one.ids),
            )
        )
    return requests


def row_strengths(
    given: float | Sequence[float] | None, count: int, actuator: Actuator
) -> list[float | None]:
    """One strength a prompt, None for the actuator's own.

    Raises:
        SettingError: an actuator without strengths, or a list of another length.
    """
    if given is None:
        return [None] * count
    if not actuator.per_row:
        raise SettingError(
            f"generate: strength is for switches that steer; this one's action is {actuator.kind}"
        )
    if isinstance(given, int | float):
        return [float(given)] * count
    if len(given) != count:
        raise SettingError(f"generate: {count} prompts but {len(given)} strengths")
    return [float(value) for value in given]


def edited(
    lm: LanguageModel,
    actuator: Actuator,
    conversations: Sequence[tuple[Message, ...]],
    limits: Sequence[int],
) -> tuple[list[tuple[Message, ...]], list[Encoded]]:
    """Conversations as an action that edits prompts makes them, as messages and encoded.

    Raises:
        ContextLengthError: one that no longer fits.
    """
    conversations = [actuator.edit(messages) for messages in conversations]
    try:
        return list(conversations), lm.inputs(conversations, room=limits)
    except ContextLengthError as error:
        raise ContextLengthError(
            f"with the text of {type(actuator).__name__} in front, {error}"
        ) from error


def reply_room(gate: Gate, limit: int) -> int:
    """Tokens that must fit behind a prompt: a reply of ``limit``, pilot tokens, tokens that a
    prober appends."""
    first = len(gate.stage1.prober.appended) if gate.stage1 is not None else 0
    last = len(gate.late.prober.appended) if gate.late is not None else 0
    return max(limit + last, gate.pilot + 1, first)


def check_images(gate: Gate, encoded: Sequence[Encoded]) -> None:
    """Refuse images where a stage reads in a pass of its own, which is given tokens alone.

    Raises:
        DataError: such a gate, and a prompt with images.
    """
    if (gate.late is not None or gate.reread_points) and any(one.vision for one in encoded):
        raise DataError(
            "the gate reads after appended tokens, in a pass that takes no images; give text alone"
        )
