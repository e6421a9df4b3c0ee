"""One choice of one request on its way from the thread that generates to the event loop that
answers.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby

import torch
from transformers import PreTrainedTokenizerBase

from safeswitch.core.types import Prompt, Reply
from safeswitch.engines.transformers.streaming import Follower, Release
from safeswitch.serving.transformers.stop_text import StopText
from safeswitch.switch.gate import Gate

Piece = tuple[bool, str]
"""Whether text is the refusal's, and the text."""


class FollowedChoice(Follower):
    """Made on the event loop; followed and failed on the thread that generates.

    Args:
        index: Its number within the request.
        prompt: What is to be answered.
        limit: Most reply tokens.
        seed: Sampling seed.
        stops: Stop strings; they are looked for in the text that has been decided, and end the
            reply at its next token.
        tokenizer: For decoding tokens as they come; None where only the whole reply is wanted, and
            nothing stops it.
        news: Set whenever there is something new, shared by the choices of a request.

    Attributes:
        explanation: What is put behind the reply's text, once its decision is on record.
    """

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        limit: int,
        seed: int,
        stops: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
        news: asyncio.Event,
    ) -> None:
        self.index, self.prompt, self.limit, self.seed = index, prompt, limit, seed
        self._loop, self._news = asyncio.get_running_loop(), news
        self.reply: asyncio.Future[Reply] = self._loop.create_future()
        self.reason: Exception | None = None
        self.shown = 0
        self.explanation = ""
        self._lock, self._pieces, self._notified = threading.Lock(), list[Piece](), False
        self._refuses = self._over = False
        self._stop = StopText(stops, self._say)
        self._tokenizer, self._release = tokenizer, self._begin(tokenizer)

    @property
    def stopped(self) -> bool:
        """Whether the text has come to a stop string."""
        return self._stop.stopped

    def token(self, token: int) -> None:
        if self.stopped:
            return
        self.shown += 1
        if self._release is not None:
            self._release.put(torch.tensor([token]))

    def restart(self) -> None:
        if self._release is not None:
            self._release.end()
            self._stop.restart()
            self._say("\n\n")  # around the stop strings, of which it may be one
            self._release = self._begin(self._tokenizer)

    def refuses(self) -> None:
        self._refuses = True

    def done(self, reply: Reply) -> None:
        self._over = True
        if self._release is not None:
            self._release.end()
            self._stop.end()
        self._loop.call_soon_threadsafe(self._settle, reply)

    def gone(self) -> bool:
        return self.reason is not None or self.stopped

    def reading(self, gate: Gate) -> AbstractContextManager[object]:
        """Held, on the thread that generates, while the reply is written under ``gate``."""
        return nullcontext()

    def renew(self) -> bool:
        """Whether the reply can begin anew after a run that failed: not once some of it has been
        handed out."""
        self._refuses = False
        return not self._over and not self.shown

    def failed(self, error: BaseException) -> None:
        """There will be no reply."""
        self._loop.call_soon_threadsafe(self._settle, error)

    def leave(self, reason: Exception) -> None:
        """Wait no longer; the reply ends at its next token, and ``reason`` is why it is not handed
        out."""
        if not self.reply.done():
            self.reason = self.reason or reason

    def take(self) -> list[Piece]:
        """The text that has come since the last call."""
        with self._lock:
            pieces, self._pieces, self._notified = self._pieces, [], False
        runs: list[Piece] = []
        for refuses, run in groupby(pieces, lambda piece: piece[0]):
            text = "".join(text for _, text in run)
            if text:
                runs.append((refuses, text))
        return runs

    def _begin(self, tokenizer: PreTrainedTokenizerBase | None) -> Release | None:
        release = Release(tokenizer, self._stop.feed) if tokenizer is not None else None
        if release is not None:
            release.put(torch.tensor([[]]))  # where a streamer is given the prompt
        return release

    def _say(self, piece: str) -> None:
        with self._lock:
            self._pieces.append((self._refuses, piece))
            notified, self._notified = self._notified, True
        if not notified:
            self._loop.call_soon_threadsafe(self._news.set)

    def _settle(self, outcome: Reply | BaseException) -> None:
        if not self.reply.done():
            if isinstance(outcome, BaseException):
                self.reply.set_exception(outcome)
            else:
                self.reply.set_result(outcome)
        self._news.set()
