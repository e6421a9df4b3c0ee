"""States of requests in a vLLM worker, kept for fitting: the reading path of serving, with nothing
decided.

Knows nothing of vLLM. Letters: n rows of a step, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from safeswitch.core.types import RUNNING, ReadPoint


class StateRecorder:
    """States by request and read point.

    Args:
        points: What to keep: ends of prompts, means over their tokens, and states after k reply
            tokens.
    """

    def __init__(self, points: Sequence[ReadPoint]) -> None:
        self.points = tuple(points)
        self._kept: dict[str, dict[ReadPoint, Tensor]] = {}

    def step(
        self, rows: Sequence[tuple[int, str, int, bool]], read: Callable[[ReadPoint], Tensor]
    ) -> None:
        """Keep what is due of one sampling step.

        Args:
            rows: Place in the batch, id of the request, reply tokens fed so far, and whether the
                reply has ended with them: its last state then stands for those that would have
                followed.
            read: States ``[n, d]`` of the whole batch at a point.
        """
        for point in self.points:
            at = point.position.index if point.position.kind in RUNNING else 0
            due = [(i, key) for i, key, fed, ended in rows if at == fed or (ended and at > fed)]
            if due:
                states = read(point)[[i for i, _ in due]].to("cpu", torch.float32, copy=True)
                for (_, key), state in zip(due, states, strict=True):
                    self._kept.setdefault(key, {})[point] = state

    def take(self, ids: Iterable[str]) -> dict[str, dict[str, bytes]]:
        """Little-endian float32 by request and point; what was taken is forgotten."""
        found: dict[str, dict[str, bytes]] = {}
        for key in ids:
            if key in self._kept:
                states = self._kept.pop(key)
                found[key] = {str(p): state.numpy().tobytes() for p, state in states.items()}
        return found
