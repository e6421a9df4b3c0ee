"""Streaming that never shows undecided text.

Tokens wait until the gate has spoken on them: pilot tokens until stage 2, watched tokens until the next reading. A request
that switches while tokens wait loses them unseen; one that switches after some were shown goes on, after a line break,
with its refusal. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from safeswitch.core.types import Reply
from safeswitch.engines.rows import Rows


class TokenSink:
    """Passes the prompt's tokens, then the decided reply tokens of a single row, on to a streamer."""

    def __init__(self, streamer: BaseStreamer, prompt: Sequence[int]) -> None:
        self.streamer = streamer
        streamer.put(torch.tensor([list(prompt)]))
        self._rows: Rows | None = None
        self._held: list[int] = []
        self._shown = 0

    def follow(self, rows: Rows) -> TokenSink:
        """Listen to a decoding run; what an earlier run still held back is dropped."""
        self._rows, self._held = rows, []
        self._break()
        return self

    def step(self, tokens: Tensor, turned: Tensor) -> None:
        """Take the newest token and show what has been decided."""
        rows = self._rows
        assert rows is not None
        if len(turned):
            self._held = []
            self._break()
        if bool(rows.valid[0]):
            self._held.append(int(tokens[0]))
        if bool(rows.pending[0]):
            return
        running = not bool(rows.fired[0]) and (rows.owing or bool(rows.alive[0]))
        keep = rows.unread if running else 0
        self._show(len(self._held) - keep)

    def say(self, tokens: Sequence[int]) -> None:
        """Show a fixed reply."""
        self._held = list(tokens)
        self._break()

    def end(self) -> None:
        """Show what is left and close the streamer."""
        self._show(len(self._held))
        self.streamer.end()

    def _show(self, count: int) -> None:
        for token in self._held[: max(0, count)]:
            self.streamer.put(torch.tensor([token]))
            self._shown += 1
        self._held = self._held[max(0, count) :]

    def _break(self) -> None:
        """Set off what was shown from what follows; once, however many runs follow before something is shown again."""
        if self._shown and isinstance(self.streamer, Release):
            self.streamer.paragraph()
        self._shown = 0


class Release(BaseStreamer):
    """A streamer that turns tokens into text pieces as soon as they are whole characters.

    After a line break it goes on from the break's token alone, so that a long reply is not decoded over and over; that token
    stays in front, since some tokenizers drop the space of a first word.

    Args:
        tokenizer: For decoding.
        emit: Called with each piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, emit: Callable[[str], None]) -> None:
        self.tokenizer, self.emit = tokenizer, emit
        self.text = ""
        self._tokens: list[int] = []
        self._printed = 0
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take one token ``[1]``; the first call brings the prompt and is passed over."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._tokens.append(int(value.flatten()[0]))
        whole = self._decode(self._tokens)
        if not whole.endswith("�"):
            self._say(whole[self._printed :])
            self._printed = len(whole)
        if whole.endswith("\n"):
            self._restart()

    def paragraph(self) -> None:
        """Start over after a line break: what follows is another reply."""
        self._tokens, self._printed = [], 0
        self._say("\n\n")

    def end(self) -> None:
        """Say what was held for want of a whole character."""
        whole = self._decode(self._tokens)
        self._say(whole[self._printed :])
        self._printed = len(whole)

    def _restart(self) -> None:
        last = self._decode(self._tokens[-1:])
        if last.endswith("\n"):
            self._tokens, self._printed = self._tokens[-1:], len(last)

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _say(self, piece: str) -> None:
        if piece:
            self.text += piece
            self.emit(piece)


class _Cancelled(StoppingCriteria):
    """Ends every row once the listener has gone."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)


class Stream:
    """Text pieces of one reply, from a thread that runs the model; iterate once, with ``for`` or ``async for``: a second
    time there is nothing left.

    ``reply`` is the whole reply once the pieces are exhausted. Closing early stops the model.
    """

    def __init__(self, run: Callable[[Callable[[str], None], StoppingCriteria], Reply]) -> None:
        self._run = run
        self._pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._cancel = _Cancelled()
        self._thread: threading.Thread | None = None
        self._ended = False
        self.reply: Reply | None = None

    def _work(self) -> None:
        try:
            self.reply = self._run(self._pieces.put, self._cancel)
            self._pieces.put(None)
        except BaseException as error:
            self._pieces.put(error)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[str]:
        if self._ended:
            return
        self._start()
        try:
            while (piece := self._pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        if self._ended:
            return
        self._start()
        try:
            while (piece := await asyncio.to_thread(self._pieces.get)) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Stop the model and wait for it to have let go; iterating then ends at once."""
        self._ended = True
        self._cancel.event.set()
        if self._thread is not None:
            self._thread.join()
