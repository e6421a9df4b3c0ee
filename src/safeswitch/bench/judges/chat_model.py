"""A chat model behind an OpenAI-compatible server, asked one question at a time: answers kept on
disk, a budget. Keys, retries and dialects are those of :mod:`safeswitch.engines.chat_server`.

Needs the package ``openai`` (``pip install "safeswitch[judges]"``). Knows nothing of what is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.grammar import JudgeSpec
from safeswitch.core.lines import append, read_rows
from safeswitch.engines.chat_server import OPENAI, ChatServer, about_question, key_for

if TYPE_CHECKING:
    from openai import APIStatusError


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
        if base_url is None and api_key is None and key_for(OPENAI) is None:
            raise SettingError(
                "a judge at OpenAI needs a key; set OPENAI_API_KEY, or name another server as "
                "MODEL@URL"
            )
        self.model, self.base_url, self.budget, self.spent = model, base_url, budget, 0
        self._server = ChatServer(
            model, base_url, api_key=api_key, retries=retries, timeout=timeout
        )
        self._max_tokens, self._cache = max_tokens, cache
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
        openai = self._server.openai
        try:
            answer = self._server.complete(turns, max_tokens=self._max_tokens)
        except openai.APIStatusError as error:
            raise _of_this_question(error) or self._failed(error) from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise self._failed(error) from error
        spent = getattr(getattr(answer, "usage", None), "total_tokens", None)
        if isinstance(spent, int):
            self.spent += spent
        return _text(answer)

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


def _of_this_question(error: APIStatusError) -> NoAnswerError | None:
    """What a refused call says of its question; None where another question would fare no
    better."""
    reason = about_question(error)
    return NoAnswerError(reason, str(error)[:200]) if reason else None


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
