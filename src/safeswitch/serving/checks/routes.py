"""The routes that read and do not answer; ``POST /v1/checks`` also without a server, in one process.

Knows nothing of engines that answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Message
from safeswitch.engines.context import SCORE, ChoiceDecision
from safeswitch.serving.checks.bodies import CheckRequest, ModerationRequest
from safeswitch.serving.checks.gateways import LiteLLMRequest, WebhookRequest, WebhookResponse
from safeswitch.serving.checks.reading import CheckBody, CheckedConversation, ClientView
from safeswitch.serving.errors import ApiError, body_fault
from safeswitch.switch.switch import Switch

CHECKS: Mapping[str, Callable[[Any], CheckBody]] = {
    "/v1/moderations": ModerationRequest.model_validate,
    "/v1/checks": CheckRequest.model_validate,
    "/beta/litellm_basic_guardrail_api": LiteLLMRequest.model_validate,
    "/request": WebhookRequest.model_validate,
    "/response": WebhookResponse.model_validate,
}
"""What reads a route's body, by its path."""
Read = Callable[[Sequence[Sequence[Message]]], list[Decision]]
"""What stage 1 decides on each conversation."""


def read_check(
    path: str, payload: JsonObject | None
) -> tuple[CheckBody, list[CheckedConversation]]:
    """The body of a route of the table, and what is to be read of it.

    Raises:
        ApiError: a body that cannot be used, naming the field.
    """
    try:
        check = CHECKS[path](payload if payload is not None else {})
        return check, check.readings
    except ValidationError as error:
        raise body_fault(error.errors()) from error


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
