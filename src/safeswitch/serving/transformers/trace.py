"""A choice that tells what happens to it: its tokens as they are written, decided and rolled back,
their scores, and every reading of a stage.

Knows nothing of HTTP.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Reply
from safeswitch.engines.transformers.streaming import Release
from safeswitch.models.language_model import LanguageModel
from safeswitch.serving.transformers.choice import FollowedChoice
from safeswitch.serving.transformers.scores import LiveScores, Scores
from safeswitch.serving.ui.events import read_event
from safeswitch.switch.gate import Gate
from safeswitch.switch.session import Session


class Pieces:
    """Turns the tokens of one run into pieces of text, one a token; a token that ends no character
    gives an empty one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._found: list[str] = []
        self._release = Release(tokenizer, self._found.append)
        self._release.put(torch.tensor([[]]))  # where a streamer is given the prompt

    def of(self, token: int) -> str:
        """The text that this token completes."""
        self._release.put(torch.tensor([token]))
        return self._taken()

    def rest(self) -> str:
        """What was held for want of a whole character."""
        self._release.end()
        return self._taken()

    def _taken(self) -> str:
        text = "".join(self._found)
        self._found.clear()
        return text


class TracedChoice(FollowedChoice):
    """See the module text. Its events are JSON objects with a ``type``:

    ``prompt``: ``tokens``, each with text and score. ``written``: a reply token that is not decided
    yet, with its text where that may be shown. ``score``: of the reply token that was fed last.
    ``read``: a stage has spoken. ``rollback``: what was written is dropped. ``refuses``: the reply
    is the switch's from here on. ``shown``: the text of the next token that is decided. ``restart``:
    what is shown from here on is another reply. ``rest``: the last text, of no token.

    Args:
        args: As for :class:`FollowedChoice`.
        lm: The model.
        undecided: Whether the text of tokens that are not decided may be told, which is text that
            the guard withholds.
    """

    def __init__(self, *args: Any, lm: LanguageModel, undecided: bool) -> None:
        index, prompt, limit, seed, stops, _, news = args
        super().__init__(index, prompt, limit, seed, stops, None, news)
        self._lm, self._undecided = lm, undecided
        self._events: list[JsonObject] = []
        self._known: tuple[str, int] | None = None
        self._draft, self._text = Pieces(lm.tokenizer), Pieces(lm.tokenizer)

    def events(self) -> list[JsonObject]:
        """What has happened since the last call."""
        with self._lock:
            events, self._events, self._notified = self._events, [], False
        return events

    def reading(self, gate: Gate) -> AbstractContextManager[object]:
        prompt = self._lm.encode([self.prompt], check=False)[0]

        def prompt_scores(scores: Scores) -> None:
            texts = [str(self._lm.tokenizer.decode([token])) for token in prompt]
            tokens = [{"text": t, "score": s} for t, s in zip(texts, scores, strict=True)]
            self._tell(type="prompt", tokens=tokens)

        def reply_score(score: float | None) -> None:
            self._tell(type="score", score=score)

        return LiveScores(self._lm, gate, prompt, prompt_scores, reply_score)

    def written(self, token: int) -> None:
        text = self._draft.of(token) if self._undecided else None
        self._tell(type="written", text=text)

    def rolled_back(self) -> None:
        self._draft = Pieces(self._lm.tokenizer)
        self._tell(type="rollback")

    def read(self, session: Session) -> None:
        """A stage has read this row: tell its score once."""
        decision = session.decision
        score = decision.scores.get(decision.stage)
        reading = (decision.stage, decision.token_index)
        if score is None or reading == self._known:
            return  # a stage that is not there, or a later run of a request that is decided
        self._known = reading
        at, fired = decision.token_index, decision.fired
        event = read_event(decision, decision.stage, at, fired=fired, pending=session.pending)
        self._tell(**event)

    def refuses(self) -> None:
        super().refuses()
        self._tell(type="refuses")

    def restart(self) -> None:
        self._text = Pieces(self._lm.tokenizer)
        self._tell(type="restart")

    def token(self, token: int) -> None:
        self.shown += 1
        self._tell(type="shown", text=self._text.of(token))

    def done(self, reply: Reply) -> None:
        if rest := self._text.rest():
            self._tell(type="rest", text=rest)
        super().done(reply)

    def _tell(self, **event: object) -> None:
        with self._lock:
            self._events.append(event)
            notified, self._notified = self._notified, True
        if not notified:
            self._loop.call_soon_threadsafe(self._news.set)
