"""``POST /v1/checks`` without a server: the same words, in one process. Knows nothing of engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Message
from safeswitch.engines.context import SCORE, ChoiceDecision
from safeswitch.serving.checks.reading import ClientView
from safeswitch.serving.checks.routes import read_check
from safeswitch.serving.errors import ApiError
from safeswitch.switch.switch import Switch

Read = Callable[[Sequence[Sequence[Message]]], list[Decision]]
"""What stage 1 decides on each conversation."""


def checked(payload: JsonObject, read: Read, switch: Switch) -> JsonObject:
    """The reply to a body of ``POST /v1/checks``, with scores: who has the switch may see them.

    Raises:
        DataError: a body that cannot be used.
    """
    try:
        check, readings = read_check("/v1/checks", payload)
    except ApiError as error:
        raise DataError(str(error)) from error
    decisions = []
    for i, decision in enumerate(read([reading.messages for reading in readings])):
        decisions.append(ChoiceDecision(i, decision, "default", switch.fingerprint, SCORE, ""))
    return check.reply(decisions, ClientView("local", True, "refuse"))
