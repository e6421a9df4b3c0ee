"""Errors of the transformers server, as OpenAI's clients know them. Knows nothing of HTTP
frameworks."""

from __future__ import annotations

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
