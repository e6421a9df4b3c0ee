"""Errors of the transformers server, as OpenAI's clients know them. Knows nothing of HTTP
frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from safeswitch.core.json_types import JsonObject
from safeswitch.serving.refused import Refused


class ApiError(Refused):
    """A request that cannot be answered, with the field at fault where there is one."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message, kind, code=code, retry_after=retry_after)
        self.param = param

    def to_dict(self) -> JsonObject:
        return {"error": {**super().to_dict()["error"], "param": self.param}}


def busy() -> ApiError:
    """Come again: too many wait."""
    return ApiError(
        429,
        "too many requests are waiting; try again later",
        "server_error",
        code="overloaded",
        retry_after=1,
    )


def ending() -> ApiError:
    """The server is about to end."""
    return ApiError(503, "the server is shutting down", "server_error", retry_after=1)


def broken() -> ApiError:
    """Something failed that the client can do nothing about."""
    return ApiError(500, "the server could not answer this request", "server_error")


def body_fault(faults: Sequence[Any]) -> ApiError:
    """The first of pydantic's faults of a body, with the field that has it."""
    fault = faults[0]
    named = [str(part) for part in fault["loc"] if part != "body"]
    # behind these the path goes on with the forms that the field may have
    if named[:1] in (["prompt"], ["stop"], ["input"]):
        named = list(takewhile(str.isidentifier, named))
    if fault["type"] == "not_served":
        return ApiError(400, str(fault["msg"]), param=".".join([*named, fault["ctx"]["field"]]))
    if fault["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON")
    reason = "not served" if fault["type"] == "extra_forbidden" else str(fault["msg"])
    path = ".".join(named)
    return ApiError(400, f"{path}: {reason}" if path else reason, param=path or None)
