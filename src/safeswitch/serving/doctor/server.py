"""Checks of a server that runs: whether it is ready, and whether it shows the guard's metrics."""

from __future__ import annotations

import httpx

from safeswitch.core.errors import SettingError
from safeswitch.engines.chat_server import check_address, key_for, key_variable
from safeswitch.serving.access import OPEN_PATHS
from safeswitch.serving.doctor.base import Hint, Installation
from safeswitch.serving.middleware import METRICS

HEALTH = OPEN_PATHS[0]
_SIGN = "safeswitch_requests"
_WAIT_S = 10.0


def health(at: Installation) -> str:
    """Whether the server is ready."""
    status = _ask(at, HEALTH).status_code
    if status != 200:
        raise SettingError(f"{HEALTH} answers {status}: the engine does not run; read its log")
    return f"{HEALTH} answers 200"


def metrics(at: Installation) -> str:
    """Whether the guard's metrics are shown."""
    answer = _ask(at, METRICS)
    if answer.status_code in (401, 403):
        return Hint(
            f"{METRICS} wants a key that may see scores (safeswitch keys add --scores): put it "
            f"into {key_variable(check_address(at.url))} to have this checked"
        )
    if answer.status_code != 200 or _SIGN not in answer.text:
        raise SettingError(
            f"{METRICS} answers {answer.status_code} without {_SIGN}: no SafeSwitch stands in "
            "front of this server, or a proxy hides it"
        )
    return f"{METRICS} shows the guard's metrics"


def _ask(at: Installation, path: str) -> httpx.Response:
    address = check_address(at.url)
    key = key_for(address)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    root = address.rstrip("/").removesuffix("/v1")
    try:
        return httpx.get(f"{root}{path}", headers=headers, timeout=_WAIT_S)
    except httpx.HTTPError as error:
        raise SettingError(
            f"{root}{path} cannot be reached ({type(error).__name__}: {error}): is the server "
            "started, and does it listen at this address (--host, --port)?"
        ) from error
