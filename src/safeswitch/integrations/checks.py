"""What guard objects ask: is this conversation flagged? A server answers, or a switch in this
process, in the words of ``POST /v1/checks``.

A guard that cannot be asked raises, so that nothing passes unread. Knows nothing of frameworks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import httpx

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.screen import screen
from safeswitch.switch.switch import Switch

Turns = Sequence[Mapping[str, Any]]
"""Messages as chat completions take them, tool calls and tool results among them."""


class Flagged(SafeSwitchError):
    """A conversation that must not go on.

    Args:
        found: The reply of ``POST /v1/checks``.
    """

    def __init__(self, found: JsonObject) -> None:
        where = [f"messages.{m['index']}" for m in found["messages"] if m["flagged"]]
        where += [f"documents.{d['index']}" for d in found["documents"] if d["flagged"]]
        super().__init__(f"flagged by SafeSwitch: {', '.join(where)}")
        self.found = found


class Checks(Protocol):
    """Whoever answers."""

    def check(self, messages: Turns) -> JsonObject:
        """The reply of ``POST /v1/checks``."""

    async def acheck(self, messages: Turns) -> JsonObject:
        """The same, for who must not wait."""


class ServerChecks:
    """A server that ``safeswitch serve`` has started.

    Args:
        url: Its address, as ``http://127.0.0.1:8000``.
        key: An API key, where the server wants one.
        timeout_s: Seconds after which a question has failed.
        transport: Of httpx; None is the network. Tests hand in a server without a socket.
    """

    def __init__(
        self, url: str, key: str = "", *, timeout_s: float = 10.0, transport: Any = None
    ) -> None:
        self._url, self._timeout, self._transport = url.rstrip("/"), timeout_s, transport
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def check(self, messages: Turns) -> JsonObject:
        """The server's reply.

        Raises:
            SafeSwitchError: it has none.
        """
        with httpx.Client(transport=self._transport, timeout=self._timeout) as client:
            try:
                return _read(client.post(**self._request(messages)))
            except httpx.HTTPError as error:
                raise _unread(error) from error

    async def acheck(self, messages: Turns) -> JsonObject:
        """The server's reply.

        Raises:
            SafeSwitchError: it has none.
        """
        async with httpx.AsyncClient(transport=self._transport, timeout=self._timeout) as client:
            try:
                return _read(await client.post(**self._request(messages)))
            except httpx.HTTPError as error:
                raise _unread(error) from error

    def _request(self, messages: Turns) -> JsonObject:
        body = {"messages": list(messages)}
        return {"url": f"{self._url}/v1/checks", "json": body, "headers": self._headers}


class SwitchChecks:
    """A switch on a model in this process; needs ``safeswitch[server]`` for the words.

    Args:
        engine: Model and batch size.
        switch: Must have a stage 1.

    Raises:
        SettingError: ``safeswitch[server]`` is not installed.
    """

    def __init__(self, engine: TransformersEngine, switch: Switch) -> None:
        try:
            from safeswitch.serving.checks.routes import checked
        except ModuleNotFoundError as error:
            raise SettingError(
                f"SwitchChecks needs {error.name}: pip install 'safeswitch[server]'"
            ) from error
        self._checked, self._engine, self._switch = checked, engine, switch

    def check(self, messages: Turns) -> JsonObject:
        """What stage 1 says.

        Raises:
            DataError: messages that cannot be read.
            ContextLengthError: a conversation that does not fit.
        """

        def read(conversations: Sequence[Any]) -> Any:
            return screen(self._engine, conversations, self._switch)

        return self._checked({"messages": list(messages)}, read, self._switch)

    async def acheck(self, messages: Turns) -> JsonObject:
        """The same, on a thread."""
        import asyncio

        return await asyncio.to_thread(self.check, messages)


def _read(reply: httpx.Response) -> JsonObject:
    if reply.status_code != 200:
        raise SafeSwitchError(f"SafeSwitch answered {reply.status_code}: {reply.text[:300]}")
    found: JsonObject = reply.json()
    return found


def _unread(error: httpx.HTTPError) -> SafeSwitchError:
    return SafeSwitchError(f"SafeSwitch cannot be asked: {type(error).__name__}: {error}")
