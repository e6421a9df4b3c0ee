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

_MASK = "mask:"


@dataclass(frozen=True)
class Activations:
    """Hidden states of n requests.

    Args:
        states: By read point, ``[n, d]``; for a ``window`` position ``[n, w, d]``, left-padded with
            zeros, the last column being the prompt's last token.
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
        """States at ``point``: ``[n, d]``, at a window ``[n, w, d]``.

        Raises:
            ActivationError: they were not recorded.
        """
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

    def to_tensors(self) -> dict[str, Tensor]:
        """States ``[n, d]`` (windows ``[n, w, d]``) and masks ``[n, w]`` bool under the names that
        they have in a file: ``4@prompt_end``, ``mask:4@window:16``."""
        states = {str(point): tensor for point, tensor in self.states.items()}
        return states | {f"{_MASK}{point}": mask for point, mask in self.masks.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], texts: Sequence[str]) -> Activations:
        """Inverse of :meth:`to_tensors`: states ``[n, d]`` or ``[n, w, d]`` and masks ``[n, w]`` by
        name, with the n requests' texts."""
        states: dict[ReadPoint, Tensor] = {}
        masks: dict[ReadPoint, Tensor] = {}
        for name, tensor in tensors.items():
            into = masks if name.startswith(_MASK) else states
            into[ReadPoint.parse(name.removeprefix(_MASK))] = tensor
        return cls(states, masks, tuple(texts))

    @classmethod
    def concatenate(cls, parts: Sequence[Activations]) -> Activations:
        """The requests of all parts, in order; windows of different widths are left-padded to the
        widest.

        Args:
            parts: One or more, of the same read points.
        """
        states: dict[ReadPoint, Tensor] = {}
        for point in parts[0].states:
            states[point] = _joined([part.states[point] for part in parts])
        masks: dict[ReadPoint, Tensor] = {}
        for point in parts[0].masks:
            masks[point] = _joined([part.masks[point] for part in parts])
        texts = tuple(text for part in parts for text in part.texts)
        return cls(states, masks, texts, tuple(name for part in parts for name in part.sources))

    def check_finite(self) -> None:
        """Raise :class:`ActivationError` naming the first read point and row that is not finite."""
        for point, tensor in self.states.items():
            bad = ~torch.isfinite(tensor).flatten(1).all(1)
            if bad.any():
                row = int(bad.nonzero()[0])
                raise ActivationError(
                    f"states at {point} are not finite (first bad row: {row} of {len(self)})"
                )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors ``[n, ...]`` one after the other; where the second dimension differs, zeros go in
    front of it."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        missing = part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])
        padded.append(torch.cat([missing, part], 1))
    return torch.cat(padded)
