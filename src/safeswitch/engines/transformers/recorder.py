"""States read in the pass that replies: the untouched model's rows, with what each point wants kept.

    pass 0          the prompts: ``prompt_end``, ``window`` and ``mean`` points are read
    pass t (1, ..)  reply token t is fed: ``pilot:k`` points with k >= t hold its state

A ``pilot:k`` point so ends with the state after k reply tokens, or after a shorter reply's last one.
Letters: b rows, w tokens of a window, d hidden size. Knows nothing of gates, labels or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from safeswitch.activations.reader import Reader
from safeswitch.activations.record import Recording
from safeswitch.core.types import SPANS, ReadPoint, Site
from safeswitch.engines.transformers.rows import Rows
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.gate import Gate


class RecordingRows(Rows):
    """A batch of the untouched model that keeps its states at ``points``.

    Args:
        lm: The model.
        lengths: Prompt tokens of each row.
        texts: Plain text of each request.
        points: ``prompt_end``, ``window``, ``mean`` and ``pilot`` points, layers resolved.

    """

    def __init__(
        self,
        lm: LanguageModel,
        lengths: Sequence[int],
        texts: Sequence[str],
        points: Sequence[ReadPoint],
    ) -> None:
        super().__init__(lm, Gate(), NoAction(), lengths, texts, in_place=False)
        self._states: dict[ReadPoint, Tensor] = {}
        """``[b, w, d]`` on the layer's own device; w is 1 but for windows."""
        self._valid: dict[ReadPoint, Tensor] = {}
        """``[b, w]`` bool: where a token of the row stands."""
        self._deepest = max((_after(point) for point in points), default=0)
        self._points: dict[Site, list[ReadPoint]] = {}
        for point in points:
            self._points.setdefault(point.site, []).append(point)
        self._recorder = Reader(
            lm, self._points, {site: partial(self._record, site) for site in self._points}
        )

    def __enter__(self) -> RecordingRows:
        super().__enter__()
        self._recorder.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._recorder.__exit__(None, None, None)

    @property
    def owing(self) -> bool:
        """Whether the last token of a row that has ended must still be fed, to be read."""
        return self.fed <= self._deepest and bool((self.valid & ~self.alive).any())

    def _record(self, site: Site, hidden: Tensor) -> Tensor:
        """Keep what the points of ``site`` want of this pass, ``[b, t, d]``."""
        for point in self._points[site]:
            if self.fed == 0:
                self._record_prompt(point, hidden)
            elif self.fed <= _after(point):
                # a row that has ended is fed padding: its last own state stays
                rows = self.valid.nonzero().flatten().to(hidden.device)
                self._states[point][rows] = hidden[rows, -1:]
        return hidden[:, -1:]

    def _record_prompt(self, point: ReadPoint, hidden: Tensor) -> None:
        width = 1
        if point.position.kind in SPANS:
            width = min(point.position.index or max(self.lengths), hidden.shape[1])
        lengths = torch.tensor(self.lengths)[:, None]
        self._states[point] = hidden[:, -width:].clone()
        self._valid[point] = torch.arange(width, 0, -1)[None] <= lengths

    def hand_over(self, batch: Sequence[int], recording: Recording) -> None:
        """Give what was read of the batch's rows, which are the requests ``batch``.

        Raises:
            ActivationError: states that are not finite.
        """
        for point, states in self._states.items():
            recording.place(point, batch, states, self._valid[point])


def _after(point: ReadPoint) -> int:
    """Reply tokens behind which the point is read."""
    return point.position.index if point.position.kind == "pilot" else 0
