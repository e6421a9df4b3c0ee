"""``POST /v1/checks`` without a server: the same words, in one process. Knows nothing of engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Message
from safeswitch.engines.context import SCORE, Verdict
from safeswitch.serving.checks.reading import Told
from safeswitch.serving.checks.routes import read_check
from safeswitch.serving.transformers.errors import ApiError
from safeswitch.switch.switch import Switch

Read = Callable[[Sequence[Sequence[Message]]], list[Decision]]
"""What stage 1 decides on each conversation."""


def checked(asked: JsonObject, read: Read, switch: Switch) -> JsonObject:
    """The reply to a body of ``POST /v1/checks``, with scores: who has the switch may see them.

    Raises:
        DataError: a body that cannot be used.
    """
    try:
        check, readings = read_check("/v1/checks", asked)
    except ApiError as error:
        raise DataError(str(error)) from error
    verdicts = []
    for i, decision in enumerate(read([reading.messages for reading in readings])):
        verdicts.append(Verdict(i, decision, "default", switch.fingerprint, SCORE, ""))
    return check.reply(verdicts, Told("local", True, "refuse"))
