"""Errors as a client of an OpenAI-compatible server knows them. Knows nothing of HTTP frameworks."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that cannot be answered, with what its client is told.

    Args:
        status: HTTP status.
        message: For the client; nothing of the server's inside.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        param: Name of the field at fault.
        retry_after: Seconds after which another try makes sense.
    """

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None,
        param: str | None = None, retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.retry_after = status, kind, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def overloaded(message: str) -> ApiError:
    """Come again: the server has too much to do, or is about to end."""
    return ApiError(503, message, kind="server_error", code="overloaded", retry_after=1)


def broken() -> ApiError:
    """Something failed that the client can do nothing about."""
    return ApiError(500, "the server failed on this request", kind="server_error", code="internal_error")


def unrecorded() -> ApiError:
    """The decision could not be put on record, so the reply stays here."""
    return ApiError(503, "decisions cannot be recorded at the moment; try again later", kind="server_error", retry_after=1)
