"""The score of each token while a reply is written, read out of the passes that write it.

The gate asks a stage at its own tokens only. Here stage 1 is asked at every prompt token and the
watch at every reply token, for a picture; what is decided does not depend on it.
Letters: t tokens of a pass, d hidden size. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safeswitch.activations.reader import Reader
from safeswitch.analyses.strip import token_scores
from safeswitch.core.types import REREAD, SPANS, Site
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import Prober
from safeswitch.switch.gate import Gate, Stage

Scores = list[float | None]
_MOST = 1 << 16
"""Tokens that may be read for one prompt's scores: they are read on the thread that answers."""
"""One a token, in [0, 1]; None where a prober has none."""
_log = logging.getLogger("safeswitch.server")


class LiveScores:
    """Context manager around the generation of one reply.

    Args:
        lm: The model.
        gate: Whose stages are asked.
        prompt: The prompt's tokens.
        tell_prompt: Given the scores of stage 1 at the prompt's tokens, before its first reply
            token is chosen; a stage that does not read tokens has none.
        tell_reply: Given the watch's score at the reply token that was fed last.
    """

    def __init__(
        self,
        lm: LanguageModel,
        gate: Gate,
        prompt: list[int],
        tell_prompt: Callable[[Scores], None],
        tell_reply: Callable[[float | None], None],
    ) -> None:
        self._lm, self._ids = lm, prompt
        self._tell_prompt, self._tell_reply = tell_prompt, tell_reply
        self._first, self._watch = _prober(gate.stage1), _prober(gate.watch)
        self._prompt_read = False
        probers = [prober for prober in (self._first, self._watch) if prober is not None]
        sites = {point.site for prober in probers for point in prober.points}
        self._reader = Reader(lm, sites, keep=lambda hidden: hidden[0].clone())
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> LiveScores:
        _ = self._lm.traits  # found once, by passes of its own that would be taken for the reply's
        self._reader.__enter__()
        # passes behind appended tokens have no LM head: this fires in passes that write
        self._handle = self._lm.parts.head.register_forward_hook(self._after)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__(None, None, None)
        if self._handle is not None:
            self._handle.remove()

    def _after(self, _head: nn.Module, _args: object, _output: object) -> None:
        """After one pass: a prompt of several tokens, or one reply token."""
        states = {site: kept.float().cpu() for site, kept in self._reader.states.items()}
        fed = max((len(kept) for kept in states.values()), default=0)
        if not self._prompt_read and fed == len(self._ids):
            self._prompt_read = True
            self._tell_prompt(self._prompt_scores(states))
        elif self._prompt_read and fed == 1:
            (score,) = self._asked(self._watch, states, ("",))
            self._tell_reply(score)

    def _prompt_scores(self, states: dict[Site, Tensor]) -> Scores:
        if self._work() > _MOST:
            return [None] * len(self._ids)
        texts = ("",) * len(self._ids)
        if self._first is not None and self._first.reads_text:
            decode = self._lm.tokenizer.decode
            ends = range(1, len(self._ids) + 1)
            texts = tuple(str(decode(self._ids[:end], skip_special_tokens=True)) for end in ends)
        return self._asked(self._first, states, texts)

    def _work(self) -> int:
        """Tokens that are read for a score at each prompt token: its prefix, or a window."""
        t = len(self._ids)
        if self._first is None:
            return t
        spans = [p.position for p in self._first.points if p.position.kind in SPANS]
        widths = [min(position.index or t, t) for position in spans]
        widths += [t] if self._first.reads_text else []
        return t * max(widths, default=1)

    def _asked(
        self, prober: Prober | None, states: dict[Site, Tensor], texts: tuple[str, ...]
    ) -> Scores:
        if prober is None:
            return [None] * len(texts)
        try:
            scores = token_scores(prober, states, texts)
        except Exception:  # a picture that cannot be drawn must not cost the reply
            _log.exception("the scores of %d tokens could not be read", len(texts))
            return [None] * len(texts)
        return [score if math.isfinite(score) else None for score in scores]


def _prober(stage: Stage | None) -> Prober | None:
    """The stage's prober, where a token of the conversation is what it reads."""
    if stage is None or any(p.position.kind in REREAD for p in stage.prober.points):
        return None
    return stage.prober
