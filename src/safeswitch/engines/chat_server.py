"""A model behind an OpenAI-compatible server: its address, its key, and calls with retries.

Judges and remote engines ask through it. Needs the package ``openai``
(``pip install "safeswitch[judges]"``). Knows nothing of what is asked.

Keys belong to addresses. ``OPENAI_API_KEY`` goes to OpenAI's own address and to no other. For the
server ``llm.example.org`` the key is taken from ``SAFESWITCH_KEY_LLM_EXAMPLE_ORG``: the host in
capitals, each dot an underscore, each hyphen two. A server for which there is no such variable is
asked without a key.

Models that take ``max_completion_tokens`` in place of ``max_tokens``, or no ``temperature``, are
found out by the server's own words and asked as they want.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.json_types import JsonMapping, JsonObject

if TYPE_CHECKING:
    from openai import APIStatusError


OPENAI = "https://api.openai.com/v1"
REASONING_ROOM = 4096
"""Tokens beside the answer's, for models that only take ``max_completion_tokens``: these think
first, out of the same count."""
_FILTERED = (
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "content management policy",
)
_TOO_LONG = ("context_length_exceeded", "maximum context length")


@dataclass(frozen=True)
class Dialect:
    """How a server wants to be asked.

    Args:
        reasons: Whether it takes ``max_completion_tokens`` in place of ``max_tokens``.
        takes_temperature: Whether it takes a ``temperature``.
    """

    reasons: bool = False
    takes_temperature: bool = True

    def settings(self, max_tokens: int, temperature: float) -> JsonObject:
        """What a call says of the answer's length, in tokens, and of sampling."""
        length = "max_completion_tokens" if self.reasons else "max_tokens"
        asked: JsonObject = {length: max_tokens + (REASONING_ROOM if self.reasons else 0)}
        if self.takes_temperature:
            asked["temperature"] = temperature
        return asked

    def after(self, words: str) -> Dialect | None:
        """The dialect that a refusal asks for; None where it asks for none that is known."""
        if not self.reasons and "max_completion_tokens" in words:
            return replace(self, reasons=True)
        if self.takes_temperature and "temperature" in words:
            return replace(self, takes_temperature=False)
        return None


class ChatServer:
    """Calls of one model; may be used by several threads at once.

    Args:
        model: Name that the server knows it by.
        base_url: Address up to ``/v1``; None is OpenAI's own.
        api_key: None takes the one that belongs to the address, see the module text.
        retries: How often a failed call is tried again (rate limits, server errors, lost
            connections), with growing pauses.
        timeout: Seconds after which a call counts as failed.

    Raises:
        SafeSwitchError: ``openai`` is not installed.
        SettingError: an address that is none.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        try:
            self.openai: Any = importlib.import_module("openai")
        except ImportError as error:
            raise SafeSwitchError(
                "a model behind a server is asked through the package openai: pip install "
                '"safeswitch[judges]"'
            ) from error
        self.model, self.address = model, check_address(base_url) if base_url else OPENAI
        self.client: Any = self.openai.OpenAI(
            base_url=self.address,
            api_key=api_key or key_for(self.address) or "none",
            max_retries=retries,
            timeout=timeout,
        )
        if urlsplit(self.address).hostname != urlsplit(OPENAI).hostname:
            # they come from OpenAI's variables, as its key does
            self.client.organization = self.client.project = None
        self._dialect, self._lock = Dialect(), Lock()

    def complete(
        self,
        turns: Sequence[JsonMapping],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        **more: Any,
    ) -> Any:
        """One chat completion, asked again in another dialect where the server wants one.

        Args:
            turns: Messages as the API has them.
            max_tokens: Longest answer.
            temperature: Of sampling; 0 is greedy.
            more: Further fields of the API's body.

        Raises:
            openai.OpenAIError: the server refuses or cannot be reached, after all retries.
            ValueError: the answer is no JSON.
            SafeSwitchError: the answer has no choices.
        """
        while True:
            dialect = self._dialect
            settings = {**dialect.settings(max_tokens, temperature), **more}
            try:
                answer = self.client.chat.completions.create(
                    model=self.model, messages=list(turns), **settings
                )
                break
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                if not self._learns(dialect, str(error)):
                    raise
        if not hasattr(answer, "choices"):
            raise SafeSwitchError(
                f"model {self.model} at {self.address}: the answer is not of the form that "
                "OpenAI's API has; is the address right, up to /v1? It begins "
                f"{str(answer)[:100]!r}"
            )
        return answer

    def _learns(self, tried: Dialect, words: str) -> bool:
        """Whether to ask again; another thread may have learned the dialect meanwhile."""
        with self._lock:
            if self._dialect != tried:
                return True
            wanted = tried.after(words)
            self._dialect = wanted or tried
            return wanted is not None


def about_question(error: APIStatusError) -> str:
    """What a refused call says of its question: ``filtered`` (by the server's content filter),
    ``too long``, or nothing where another question would fare no better."""
    words = f"{error} {getattr(error, 'code', '')} {getattr(error, 'body', '')}".lower()
    flagged = error.status_code == 403 and "flagged" in words
    if flagged or any(mark in words for mark in _FILTERED):
        return "filtered"
    return "too long" if any(mark in words for mark in _TOO_LONG) else ""


def check_address(address: str) -> str:
    """The address, where it is one of a server.

    Raises:
        SettingError: no http or https address, or one with a name and password in it, which would
            stand in every record.
    """
    try:
        parts = urlsplit(address)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise SettingError(f"address {address!r}: {error}") from error
    if not fits or address != "".join(address.split()):
        raise SettingError(
            f"address {address!r}: must begin with http:// or https:// and a host, and hold no "
            "white space"
        )
    if parts.username is not None or parts.password is not None:
        raise SettingError(
            f"address of {parts.hostname}: must hold no name and password; put the key into "
            f"{key_variable(address)}"
        )
    return address


def key_variable(address: str) -> str:
    """The environment variable that holds the key for an address."""
    parts = urlsplit(address)
    if (parts.scheme, parts.hostname, parts.port or 443) == (
        "https",
        urlsplit(OPENAI).hostname,
        443,
    ):
        return "OPENAI_API_KEY"
    host = (parts.hostname or "").replace("-", "__").replace(".", "_").replace(":", "_")
    return f"SAFESWITCH_KEY_{host.upper()}"


def key_for(address: str) -> str | None:
    """The key that belongs to an address, None where there is none."""
    return os.environ.get(key_variable(address)) or None
