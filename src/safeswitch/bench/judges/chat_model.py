"""A chat model behind an OpenAI-compatible server, asked one question at a time: retries, answers
kept on disk, a budget.

Needs the package ``openai`` (``pip install "safeswitch[judges]"``). Knows nothing of what is asked.

Keys belong to addresses. ``OPENAI_API_KEY`` goes to OpenAI's own address and to no other. For the
server ``llm.example.org`` the key is taken from ``SAFESWITCH_KEY_LLM_EXAMPLE_ORG``: the host in
capitals, each dot an underscore, each hyphen two. A server for which there is no such variable is
asked without a key.

Models that take ``max_completion_tokens`` in place of ``max_tokens``, or no ``temperature``, are
found out by the server's own words and asked as they want.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.grammar import JudgeSpec
from safeswitch.core.json_types import JsonObject
from safeswitch.core.lines import append, read_rows

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


class NoAnswerError(SafeSwitchError):
    """A question without an answer that could be read; others may have one.

    Args:
        reason: ``filtered`` (by the server's content filter), ``declined`` (by the model), ``too
            long``, ``empty`` or ``unreadable``.
        detail: What came instead.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class ChatModel:
    """Asks a model, greedily where it takes a temperature; the same question is paid for once.

    Args:
        model: Name that the server knows it by.
        base_url: Address up to ``/v1``; None is OpenAI's own.
        api_key: None takes the one that belongs to the address, see the module text.
        cache: JSONL file of answers; None keeps none.
        budget: Most tokens, questions and answers together, that may be spent by this object; None
            is without limit.
        retries: How often a failed call is tried again (rate limits, server errors, lost
            connections), with growing pauses.
        max_tokens: Longest answer.
        timeout: Seconds after which a call counts as failed.

    Raises:
        SafeSwitchError: ``openai`` is not installed.
        SettingError: an address that is none, or no key for OpenAI.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        cache: Path | None = None,
        budget: int | None = None,
        retries: int = 5,
        max_tokens: int = 256,
        timeout: float = 120.0,
    ) -> None:
        try:
            openai = importlib.import_module("openai")
        except ImportError as error:
            raise SafeSwitchError(
                'a chat model as judge needs openai: pip install "safeswitch[judges]"'
            ) from error
        address = check_address(base_url) if base_url else OPENAI
        key = api_key or key_for(address)
        if key is None and base_url is None:
            raise SettingError(
                "a judge at OpenAI needs a key; set OPENAI_API_KEY, or name another server as "
                "MODEL@URL"
            )
        self.model, self.base_url, self.budget, self.spent = model, base_url, budget, 0
        self._openai: Any = openai
        self._client: Any = openai.OpenAI(
            base_url=address, api_key=key or "none", max_retries=retries, timeout=timeout
        )
        if urlsplit(address).hostname != urlsplit(OPENAI).hostname:
            self._client.organization = self._client.project = (
                None  # they come from OpenAI's variables, as its key does
            )
        self._max_tokens, self._cache = max_tokens, cache
        self._settings: JsonObject = {"temperature": 0, "max_tokens": max_tokens}
        rows = read_rows(cache) if cache is not None and cache.exists() else {}
        self._known: dict[str, str] = {key: row["answer"] for key, row in rows.items()}

    @classmethod
    def of(cls, spec: JudgeSpec, cache: Path) -> ChatModel:
        """The model behind a judge's name; its answers are kept in ``cache``, in a file of the
        judge's kind.

        Raises:
            SettingError: a budget that is no whole number, or an ``@`` that no address follows.
        """
        if "@" in spec.model:
            raise SettingError(
                f"judge {spec.kind}: behind @ in {spec.model!r} must stand an address that begins "
                "with http:// or https://; a model whose own name holds an @ needs its address as "
                "well"
            )
        budget = spec.settings.get("budget")
        if budget is not None and not budget.isdecimal():
            raise SettingError(
                f"judge {spec.kind}: budget must be a whole number of tokens; got {budget!r}"
            )
        return cls(
            spec.model,
            spec.address or None,
            cache=cache / f"{spec.kind}.jsonl",
            budget=int(budget) if budget else None,
        )

    def ask(self, system: str, user: str, readable: Callable[[str], bool]) -> str:
        """The model's answer, asked for twice where the first cannot be read; only readable answers
        are kept.

        Args:
            system: What it is to do.
            user: What it is asked.
            readable: Whether an answer is one.

        Raises:
            NoAnswerError: it gave none to this question.
            SettingError: the budget is spent.
            SafeSwitchError: the server cannot be reached, refuses, or is no such server, after all
                retries.
        """
        content = json.dumps([self.model, self.base_url, self._max_tokens, system, user])
        key = hashlib.sha256(content.encode()).hexdigest()[:32]
        known = self._known.get(key)
        if known is not None and readable(known):
            return known
        try:
            answer = self._read(system, user, readable)
        except NoAnswerError as error:
            if error.reason not in ("empty", "unreadable"):
                raise
            answer = self._read(system, user, readable)
        self._keep(key, answer)
        return answer

    def _read(self, system: str, user: str, readable: Callable[[str], bool]) -> str:
        answer = self._call(system, user)
        if not readable(answer):
            raise NoAnswerError("unreadable", answer[:200])
        return answer

    def _call(self, system: str, user: str) -> str:
        if self.budget is not None and self.spent >= self.budget:
            raise SettingError(
                f"judge {self.model}: the budget of {self.budget} tokens is spent; what was judged "
                "is kept, run again with more"
            )
        turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            answer = self._complete(turns)
        except self._openai.APIStatusError as error:
            raise _of_this_question(error) or self._failed(error) from error
        except (
            self._openai.OpenAIError,
            ValueError,
        ) as error:  # ValueError: a body that is no JSON
            raise self._failed(error) from error
        spent = getattr(getattr(answer, "usage", None), "total_tokens", None)
        if isinstance(spent, int):
            self.spent += spent
        if not hasattr(answer, "choices"):
            raise SafeSwitchError(
                f"judge {self.model} at {self.base_url or OPENAI}: the answer is not of the form "
                "that OpenAI's API has; is the address right, up to /v1? It begins "
                f"{str(answer)[:100]!r}"
            )
        return _text(answer)

    def _complete(self, turns: list[dict[str, str]]) -> Any:
        """One call, again with other settings where the server says that it does not know one of
        them."""
        while True:
            try:
                return self._client.chat.completions.create(
                    model=self.model, messages=turns, **self._settings
                )
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                if not self._give_way(str(error)):
                    raise

    def _give_way(self, words: str) -> bool:
        """Whether the settings could be changed to what the server wants; each changes once at
        most."""
        if "max_tokens" in self._settings and "max_completion_tokens" in words:
            self._settings["max_completion_tokens"] = (
                self._settings.pop("max_tokens") + REASONING_ROOM
            )
        elif "temperature" in self._settings and "temperature" in words:
            del self._settings["temperature"]
        else:
            return False
        return True

    def _failed(self, error: Exception) -> SafeSwitchError:
        where = self.base_url or OPENAI
        return SafeSwitchError(
            f"judge {self.model} at {where}: {type(error).__name__}: {str(error)[:500]}"
        )

    def _keep(self, key: str, answer: str) -> None:
        self._known[key] = answer
        if self._cache is not None:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            append(self._cache, [{"id": key, "request": key, "answer": answer}])


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


def _of_this_question(error: Any) -> NoAnswerError | None:
    """What a refused call says of its question; None where another question would fare no
    better."""
    words = f"{error} {getattr(error, 'code', '')} {getattr(error, 'body', '')}".lower()
    if any(mark in words for mark in _FILTERED) or (
        error.status_code == 403 and "flagged" in words
    ):
        return NoAnswerError("filtered", str(error)[:200])
    if any(mark in words for mark in _TOO_LONG):
        return NoAnswerError("too long", str(error)[:200])
    return None


def _text(answer: Any) -> str:
    """The text of an answer, in characters that a file can hold.

    Raises:
        NoAnswerError: there is none.
    """
    choices = answer.choices
    if not isinstance(choices, list) or not choices:
        raise NoAnswerError(
            "empty", f"choices: {choices!r}, error: {getattr(answer, 'error', None)!r}"[:200]
        )
    finish, message = (getattr(choices[0], name, None) for name in ("finish_reason", "message"))
    if finish == "content_filter":
        raise NoAnswerError("filtered", "finish_reason: content_filter")
    refusal, content = (getattr(message, name, None) for name in ("refusal", "content"))
    if isinstance(refusal, str) and refusal:
        raise NoAnswerError("declined", refusal[:200])
    if not isinstance(content, str) or not content.strip():
        raise NoAnswerError("empty", f"content: {content!r}, finish_reason: {finish!r}"[:200])
    return content.encode("utf-8", "replace").decode()
