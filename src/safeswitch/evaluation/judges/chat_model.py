"""A chat model behind an OpenAI-compatible server, asked one question at a time: retries, answers kept on disk, a budget.

Needs the package ``openai`` (``pip install "safeswitch[judges]"``). Knows nothing of what is asked.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.lines import append, read_rows


class ChatModel:
    """Asks a model, greedily; the same question is paid for once.

    Args:
        model: Name that the server knows it by.
        base_url: Address up to ``/v1``; None is OpenAI's own.
        api_key: None takes ``OPENAI_API_KEY``.
        cache: JSONL file of answers; None keeps none.
        budget: Most tokens, questions and answers together, that may be spent by this object; None is without limit.
        retries: How often a failed call is tried again (rate limits, server errors, lost connections), with growing pauses.
        max_tokens: Longest answer.

    Raises:
        SafeSwitchError: ``openai`` is not installed, or no key is at hand.
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
    ) -> None:
        try:
            openai = importlib.import_module("openai")
        except ImportError as error:
            raise SafeSwitchError('a chat model as judge needs openai: pip install "safeswitch[judges]"') from error
        key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        if key is None:
            raise SettingError("a judge at OpenAI needs a key; set OPENAI_API_KEY, or name another server as MODEL@URL")
        self.model, self.base_url, self.budget, self.spent = model, base_url, budget, 0
        self._errors: Any = openai.OpenAIError
        self._client: Any = openai.OpenAI(base_url=base_url, api_key=key, max_retries=retries)
        self._max_tokens, self._cache = max_tokens, cache
        rows = read_rows(cache) if cache is not None and cache.exists() else {}
        self._known: dict[str, str] = {key: row["answer"] for key, row in rows.items()}

    def ask(self, system: str, user: str) -> str:
        """The model's answer.

        Raises:
            SettingError: the budget is spent.
            SafeSwitchError: the server cannot be reached, or refuses, after all retries.
        """
        asked = json.dumps([self.model, self.base_url, self._max_tokens, system, user])
        key = hashlib.sha256(asked.encode()).hexdigest()[:32]
        if key not in self._known:
            self._keep(key, self._call(system, user))
        return self._known[key]

    def _call(self, system: str, user: str) -> str:
        if self.budget is not None and self.spent >= self.budget:
            raise SettingError(
                f"judge {self.model}: the budget of {self.budget} tokens is spent; what was judged is kept, run again with more"
            )
        turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=turns, temperature=0, max_tokens=self._max_tokens
            )
        except self._errors as error:
            where = self.base_url or "api.openai.com"
            raise SafeSwitchError(f"judge {self.model} at {where}: {type(error).__name__}: {error}") from error
        if answer.usage is not None:
            self.spent += answer.usage.total_tokens
        return answer.choices[0].message.content or ""

    def _keep(self, key: str, answer: str) -> None:
        self._known[key] = answer
        if self._cache is not None:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            append(self._cache, [{"id": key, "request": key, "answer": answer}])
