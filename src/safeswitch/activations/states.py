"""The container that carries hidden states from a model to a prober.

Shapes: n requests, d hidden size, w window tokens. Knows nothing of models, labels or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safeswitch.core.errors import ActivationError
from safeswitch.core.types import ReadPoint


@dataclass(frozen=True)
class Activations:
    """Hidden states of n requests.

    Args:
        states: By read point, ``[n, d]``; for a ``window`` position ``[n, w, d]``, left-padded with zeros, the last
            column being the prompt's last token.
        masks: For each ``window`` read point, ``[n, w]`` bool: True where a token was read.
        texts: The requests' plain text, for readers of text; empty when not known.
        sources: Where each request comes from (``Example.source``), for fits in which every source
            weighs the same; empty when not known. Scoring never looks at it.
    """

    states: Mapping[ReadPoint, Tensor]
    masks: Mapping[ReadPoint, Tensor] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        for tensor in self.states.values():
            return int(tensor.shape[0])
        return len(self.texts)

    @property
    def points(self) -> tuple[ReadPoint, ...]:
        return tuple(self.states)

    def at(self, point: ReadPoint) -> Tensor:
        """States at ``point``; raises :class:`ActivationError` when they were not recorded."""
        if point not in self.states:
            have = ", ".join(str(p) for p in self.states) or "none"
            raise ActivationError(f"no states recorded at {point}; recorded: {have}")
        return self.states[point]

    def select(self, rows: Sequence[int] | Tensor) -> Activations:
        """The requests ``rows`` (indices or a bool mask ``[n]``), in that order."""
        index = torch.as_tensor(rows)
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        return Activations(
            {p: t[index.to(t.device)] for p, t in self.states.items()},
            {p: m[index.to(m.device)] for p, m in self.masks.items()},
            tuple(self.texts[int(i)] for i in index) if self.texts else (),
            tuple(self.sources[int(i)] for i in index) if self.sources else (),
        )

    def check_finite(self) -> None:
        """Raise :class:`ActivationError` naming the first read point and row that is not finite."""
        for point, tensor in self.states.items():
            bad = ~torch.isfinite(tensor).flatten(1).all(1)
            if bad.any():
                row = int(bad.nonzero()[0])
                raise ActivationError(f"states at {point} are not finite (first bad row: {row} of {len(self)})")
