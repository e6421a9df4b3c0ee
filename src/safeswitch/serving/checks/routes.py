"""The routes that read and do not answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from safeswitch.core.json_types import JsonObject
from safeswitch.serving.checks.bodies import CheckRequest, ModerationRequest
from safeswitch.serving.checks.reading import Check
from safeswitch.serving.transformers.errors import body_fault

CHECKS: Mapping[str, Callable[[Any], Check]] = {
    "/v1/moderations": ModerationRequest.model_validate,
    "/v1/checks": CheckRequest.model_validate,
}
"""What reads a route's body, by its path."""


def read_check(path: str, asked: JsonObject | None) -> Check:
    """The body of a route of the table.

    Raises:
        ApiError: a body that cannot be used, naming the field.
    """
    try:
        return CHECKS[path](asked if asked is not None else {})
    except ValidationError as error:
        raise body_fault(error.errors()) from error
