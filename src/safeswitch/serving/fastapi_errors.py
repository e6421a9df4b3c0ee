"""FastAPI applications whose errors have OpenAI's shape. Knows nothing of engines."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from safeswitch.core.json_types import JsonObject
from safeswitch.serving.audit import AuditError
from safeswitch.serving.errors import ApiError, body_fault, internal_error, not_recorded

_log = logging.getLogger("safeswitch.server")


def answer_errors(
    app: FastAPI,
    answer_to: Callable[[Exception], ApiError],
    kinds: tuple[type[Exception], ...] = (),
) -> None:
    """Have ``app`` answer every error.

    Args:
        app: The application.
        answer_to: What a client is told of an error.
        kinds: Errors besides :class:`ApiError` and :class:`AuditError` that are no fault of the
            server's: any other one is raised again once it has been answered.
    """

    async def failed(request: Request, error: Exception) -> Response:
        return error_answer(answer_to(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_answer(body_fault(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_answer(ApiError(error.status_code, str(error.detail)))

    for kind in (ApiError, AuditError, *kinds, Exception):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def error_for_client(error: Exception) -> ApiError:
    """The answer to a failure; what nobody knows is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AuditError):
        return not_recorded()
    _log.error("a request failed", exc_info=error)
    return internal_error()


def error_answer(error: ApiError) -> Response:
    """The response that tells of an error."""
    again = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    return json_answer(error.status, error.to_dict(), again)


def json_answer(status: int, body: JsonObject, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(json.dumps(body), status, headers, "application/json")
