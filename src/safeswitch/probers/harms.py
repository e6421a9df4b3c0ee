"""Which kind of harm a request asks for, read from the states of its prompt and from its words.

One logistic reader a kind, all of them one matrix: a request may be of several kinds. It is asked
once the gate has fired, and decides nothing itself. Shapes: n requests, C kinds, P points read, d
hidden size, B buckets of word n-grams. Knows nothing of gates or thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ArtifactError, SettingError, check_choice
from safeswitch.core.harms import HARMS, OTHER, Severity
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import check_shapes, only, take
from safeswitch.core.types import PROMPT_END, ReadPoint
from safeswitch.probers.learned import rows_at

LONGEST = 2
"""Longest n-gram that is read, in words."""
POSITIONS = (PROMPT_END.kind, "mean")
"""Kinds of position at which kinds of harm may be read."""
SURE = 0.5
"""Probability from which a request counts as of a kind, beside its likeliest one."""


@dataclass(frozen=True)
class Seen:
    """What kinds of harm are seen in one request.

    Args:
        category: The likeliest kind; ``other`` where the reader could not run.
        categories: Probability by kind.
        severity: What the request deserves.
    """

    category: str
    categories: Mapping[str, float]
    severity: Severity

    @property
    def kinds(self) -> tuple[str, ...]:
        """The likeliest kind, and every other that is more likely than not."""
        sure = [name for name, value in self.categories.items() if value >= SURE]
        return tuple(dict.fromkeys([self.category, *sure]))


UNREAD = Seen(OTHER, {}, "refuse")
"""Of a request on which the reader could not run."""


class HarmReader:
    """C kinds and one severity, each a linear function of P states and of the words, then the
    logistic function.

    Calibration (a slope and a shift for each) is folded into the weights.

    Args:
        names: The C kinds, of :data:`safeswitch.core.harms.HARMS`.
        points: The P points, at the prompt's end or means over its last tokens.
        weight: ``[C + 1, P, d]``; the last row reads how mild a harmful request is.
        bias: ``[C + 1]``.
        words: ``[C + 1, B]``, of hashed n-grams of up to ``LONGEST`` words; None reads none.

    Raises:
        SettingError: no kind, an unknown one, one twice, or a point elsewhere.
    """

    def __init__(
        self,
        names: Sequence[str],
        points: Sequence[ReadPoint],
        weight: Tensor,
        bias: Tensor,
        words: Tensor | None = None,
    ) -> None:
        self.names, self.points = tuple(names), tuple(points)
        if not self.names or len(set(self.names)) != len(self.names):
            raise SettingError("HarmReader: names must be one or more different kinds of harm")
        for name in self.names:
            check_choice("HarmReader", "names", name, tuple(HARMS))
        for point in self.points:
            check_choice("HarmReader", f"position of {point}", point.position.kind, POSITIONS)
        self.weight, self.bias, self.words = weight, bias, words

    @property
    def reads_text(self) -> bool:
        """Whether it needs the requests' plain text."""
        return self.words is not None

    def logits(self, activations: Activations) -> Tensor:
        """``[n, C + 1]`` float32, one for each kind and one for being mild; from states ``[n, d]``
        and texts.

        Raises:
            ActivationError: states that are missing or of another width, or texts that are missing.
        """
        width = self.weight.shape[2]
        states = [rows_at(activations, p, "harm reader", width=width) for p in self.points]
        logits = self.bias.to(states[0].device)
        for rows, weight in zip(states, self.weight.unbind(1), strict=True):
            logits = logits + (rows @ weight.T.to(rows.device)).to(logits.device)
        if self.words is not None:
            logits = logits + word_logits(self.words, activations).to(logits)
        return logits

    def probabilities(self, activations: Activations) -> Tensor:
        """``[n, C + 1]`` float32 in [0, 1]: the logistic function of :meth:`logits`."""
        return torch.sigmoid(self.logits(activations))

    def read(self, activations: Activations) -> list[Seen]:
        """What is seen in each of n requests; :data:`UNREAD` where that is not finite."""
        found = []
        for row in self.probabilities(activations).tolist():
            found.append(self._seen(row))
        return found

    def _seen(self, row: Sequence[float]) -> Seen:
        *kinds, mild = row
        if any(value != value for value in row):  # NaN
            return UNREAD
        likeliest = max(range(len(kinds)), key=lambda i: kinds[i])
        severity: Severity = "careful" if mild >= SURE else "refuse"
        return Seen(self.names[likeliest], dict(zip(self.names, kinds, strict=True)), severity)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """Plain-JSON config, and tensors ``weight`` ``[C + 1, P, d]``, ``bias`` ``[C + 1]`` and, where
        words are read, ``words`` ``[C + 1, B]``."""
        config = {"names": list(self.names), "points": [str(point) for point in self.points]}
        tensors = {"weight": self.weight, "bias": self.bias}
        if self.words is not None:
            tensors["words"] = self.words
        return config, {name: tensor.cpu().clone() for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`, tensors ``weight`` ``[C + 1, P, d]``, ``bias`` ``[C + 1]`` and, in
        bundles that read words, ``words`` ``[C + 1, B]``.

        Raises:
            ArtifactError: a field or tensor that is unknown, missing, or of another type or shape.
            SettingError: see the class.
        """
        where = "harm reader"
        only(config, ("names", "points"), where)
        names = take(config, "names", tuple[str, ...], where)
        stored = take(config, "points", tuple[str, ...], where)
        points = tuple(ReadPoint.parse(point) for point in stored)
        if not points:
            raise ArtifactError(f"{where}: points must name one or more points")
        sizes = {"C": len(names) + 1, "P": len(points)}
        shapes = {"weight": "C P d", "bias": "C"}
        if "words" in tensors:
            shapes["words"] = "C B"
        check_shapes(where, tensors, shapes, sizes)
        words = tensors["words"].clone() if "words" in tensors else None
        return cls(names, points, tensors["weight"].clone(), tensors["bias"].clone(), words)


def word_logits(words: Tensor, activations: Activations) -> Tensor:
    """What the requests' words alone say, ``[n, C + 1]`` float64, from weights ``[C + 1, B]``.

    Raises:
        ActivationError: texts that are missing.
    """
    from safeswitch.probers.ngrams import hashed_ngrams  # of use to bundles that read words alone

    found = hashed_ngrams(activations, LONGEST, words.shape[1], "harm reader")
    return torch.from_numpy(np.asarray(found @ words.T.cpu().double().numpy()))
