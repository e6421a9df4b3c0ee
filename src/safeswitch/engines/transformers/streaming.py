"""Streaming that never shows undecided text.

Tokens wait until the gate has spoken on them: pilot tokens until stage 2, watched tokens until the
next reading. A request that switches while tokens wait loses them unseen; one that switches after
some were shown continues, after a line break, with its refusal. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from safeswitch.core.types import Reply
from safeswitch.engines.transformers.rows import Rows
from safeswitch.models.thinking import Thread
from safeswitch.switch.session import Session


class Follower:
    """Follows one reply of a batch while it comes; called from the thread that generates. Override
    what is wanted."""

    def token(self, token: int) -> None:
        """The next decided token."""

    def restart(self) -> None:
        """What follows is another reply: the request has switched after tokens were shown."""

    def written(self, token: int) -> None:
        """The next token as the model writes it, decided or not: a follower that passes it on
        shows what may yet be rolled back."""

    def rolled_back(self) -> None:
        """What was written is dropped; the next token written is the first of another reply."""

    def read(self, session: Session) -> None:
        """A stage has spoken; ``session`` is what is known of the request since."""

    def refuses(self) -> None:
        """From here on the reply is the switch's: the request has fired."""

    def done(self, reply: Reply) -> None:
        """The reply is whole and decided; other rows of its batch may still be running."""

    def gone(self) -> bool:
        """Whether nobody waits for more of the reply: it then ends at its next token."""
        return False


class StreamerFollower(Follower):
    """Passes the prompt's tokens, then the decided tokens, on to a streamer of ``transformers``."""

    def __init__(self, streamer: BaseStreamer, prompt: Sequence[int]) -> None:
        self.streamer = streamer
        streamer.put(torch.tensor([list(prompt)]))

    def token(self, token: int) -> None:
        self.streamer.put(torch.tensor([token]))

    def restart(self) -> None:
        if isinstance(self.streamer, Release):
            self.streamer.paragraph()

    def done(self, reply: Reply) -> None:
        self.streamer.end()


class RowSink:
    """Holds the tokens of one row back until they are decided, and those of its thinking for good
    where they are not wanted.

    Args:
        follower: Is given the others.
        thread: Makes what follows the reply's thinking, where that is to be hidden.
    """

    def __init__(self, follower: Follower, thread: Callable[[], Thread] | None = None) -> None:
        self.follower = follower
        self._made = thread
        self._thread = thread() if thread is not None else None
        self.tokens: list[int] = []
        self.over = False
        self._shown = 0
        self._fired = False
        self._session: Session | None = None

    def begin(self) -> None:
        """The reply begins, or begins anew: what is still held back is dropped, what was shown is
        set off, once."""
        if self.tokens:
            self.follower.rolled_back()
        if self._shown:
            self.follower.restart()
        self.tokens, self._shown = [], 0
        self._thread = self._made() if self._made is not None else None

    def take(self, token: int) -> None:
        """The row's next token."""
        self.tokens.append(token)
        self.follower.written(token)
        if self._thread is not None:
            self._thread.take(token)

    def show(self, count: int) -> None:
        """Let the first ``count`` tokens through, but for hidden thinking."""
        hidden = self._thread.answer if self._thread is not None else 0
        if hidden is not None:
            self._give(max(hidden, self._shown), count)

    def _give(self, start: int, count: int) -> None:
        for token in self.tokens[start:count]:
            self.follower.token(token)
            self._shown = count

    def read(self, session: Session) -> None:
        """What is known of the request by now; a session is replaced whenever a stage speaks."""
        if session is not self._session:
            self._session = session
            self.follower.read(session)

    def fire(self) -> None:
        """The request has fired and is acted on."""
        if not self._fired:
            self._fired = True
            self.follower.refuses()

    def hand(self, reply: Reply) -> None:
        """A whole reply at once."""
        self.begin()
        if reply.decision.actuator != "none" and reply.decision.act != "careful":
            self.fire()
        for token in reply.token_ids:
            self.take(token)
        self.finish(reply)

    def finish(self, reply: Reply) -> None:
        """Let everything through, and the whole reply."""
        self.show(len(self.tokens))
        if self._thread is not None and self._thread.answer is None and reply.decision.refuses:
            self._give(0, len(self.tokens))
        self.over = True
        self.follower.done(reply)


class Sinks:
    """Listens to a decoding run for the followers of its rows.

    Args:
        rows: The run.
        sinks: One per row.
        reply: Makes the reply of a row from its number and tokens.
    """

    def __init__(
        self, rows: Rows, sinks: Sequence[RowSink], reply: Callable[[int, list[int]], Reply]
    ) -> None:
        self._rows, self._sinks, self._reply = rows, sinks, reply
        for sink in sinks:
            sink.begin()

    def step(self, tokens: Tensor, leaving: Tensor) -> None:
        """Take the newest tokens ``[b]``, one a row; rows ``leaving`` begin anew. Show what
        has been decided, and finish rows that have ended and are decided."""
        rows, back, chosen = self._rows, set(leaving.tolist()), tokens.tolist()
        waiting, unread = rows.waiting, rows.unread if rows.changes_rows else 0
        for i, sink in enumerate(self._sinks):
            if sink.over:
                continue
            sink.read(rows.sessions[i])
            if i in back:
                sink.begin()
            if bool(rows.switched[i]):
                sink.fire()
            if bool(rows.valid[i]):
                sink.take(chosen[i])
            if bool(rows.pending[i]) and rows.changes_rows:
                continue
            running = bool(rows.alive[i] | waiting[i])
            sink.show(len(sink.tokens) - (unread if running and not bool(rows.fired[i]) else 0))
            if sink.tokens and not running:
                sink.finish(self._reply(i, sink.tokens))


class Gone(StoppingCriteria):
    """Ends the rows for which nobody waits any more.

    Args:
        rows: The run.
        sinks: One per row.
    """

    def __init__(self, rows: Rows, sinks: Sequence[RowSink]) -> None:
        self._rows, self._sinks = rows, sinks

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: object) -> Tensor:
        ended = torch.tensor([not s.over and s.follower.gone() for s in self._sinks])
        # A row that has just been rolled back writes another reply, which its follower has not
        # seen yet.
        ended[self._rows.leaving] = False
        return ended.to(input_ids.device)


class Limits(StoppingCriteria):
    """Ends each row at a length of its own.

    Args:
        width: Padded prompt length.
        limits: Most reply tokens of each row.
    """

    def __init__(self, width: int, limits: Sequence[int]) -> None:
        self._width, self._limits = width, limits

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: object) -> Tensor:
        reached = input_ids.shape[1] - self._width
        return torch.tensor([reached >= limit for limit in self._limits], device=input_ids.device)


class Release(BaseStreamer):
    """A streamer that turns tokens into text pieces as soon as they are whole characters.

    After a line break it continues from the break's token alone, so that a long reply is not decoded
    over and over; that token stays in front, since some tokenizers drop the space of a first word.

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

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: object) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool
        )


class Stream:
    """Text pieces of one reply, from a thread that runs the model; iterate once, with ``for`` or
    ``async for``: a second time there is nothing left.

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
