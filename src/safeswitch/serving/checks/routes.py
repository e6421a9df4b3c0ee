"""The routes that read and do not answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from safeswitch.core.json_types import JsonObject
from safeswitch.serving.checks.bodies import CheckRequest, ModerationRequest
from safeswitch.serving.checks.gateways import LiteLLMRequest, WebhookRequest, WebhookResponse
from safeswitch.serving.checks.reading import Check, Reading
from safeswitch.serving.errors import body_fault

CHECKS: Mapping[str, Callable[[Any], Check]] = {
    "/v1/moderations": ModerationRequest.model_validate,
    "/v1/checks": CheckRequest.model_validate,
    "/beta/litellm_basic_guardrail_api": LiteLLMRequest.model_validate,
    "/request": WebhookRequest.model_validate,
    "/response": WebhookResponse.model_validate,
}
"""What reads a route's body, by its path."""


def read_check(path: str, payload: JsonObject | None) -> tuple[Check, list[Reading]]:
    """The body of a route of the table, and what is to be read of it.

    Raises:
        ApiError: a body that cannot be used, naming the field.
    """
    try:
        check = CHECKS[path](payload if payload is not None else {})
        return check, check.readings
    except ValidationError as error:
        raise body_fault(error.errors()) from error
