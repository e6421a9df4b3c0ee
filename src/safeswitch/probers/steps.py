"""Logistic regression on what several blocks add to the residual stream at the prompt's end.

Shapes: n requests, B blocks, L layers read, d hidden size. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import PROMPT_END, ReadPoint
from safeswitch.probers.base import PROBERS, check_labels
from safeswitch.probers.learned import LearnedProber, mark_unreadable, rows_at
from safeswitch.probers.logistic import Array, fit_logistic
from safeswitch.probers.points import Labelled
from safeswitch.probers.settings import Limit, Number, WholeNumbers
from safeswitch.probers.split import source_weights
from safeswitch.probers.standardise import Standardiser, fit_standardiser


@PROBERS.add("steps")
class StepsProber(LearnedProber):
    """One logistic regression with L2 on the steps ``h[b] - h[b - 1]`` of several blocks b.

    Every feature of every step is standardised on the fit rows and divided by ``sqrt(B)``. Rows
    weigh by class and source (:func:`safeswitch.probers.split.source_weights`): a large set of one
    style then does not decide what unsafe means, and the starter set decides most.

    All of it is linear in the states, so only the sum is kept: one vector for each layer read.
    Scoring costs a dot product a layer, and a layer between two of the blocks is read once.

    Args:
        blocks: Numbers of the blocks, the first being 1: block b takes layer ``b - 1`` to layer b.
            A model's last block is none of them, since the last layer's state is that behind the
            final norm.
        ridge: Strength of the penalty ``ridge / 2 * |w|^2`` on the weighted *mean* loss, so that it
            means the same for any number of rows. Fixed and not chosen on held-out rows: those come
            from the sources fitted on, for which a weaker penalty always looks better than it is
            for other sources. The default was chosen on left-out sets, where .003 to .03 do about
            as well.

    Attributes:
        weight_: ``[L, d]``, in the order of ``points``.
        bias_: ``[1]``.
    """

    kind = "steps"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {"blocks": WholeNumbers(1, 2**12), "ridge": Number(1e-8, 1e4)}
    )
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType({"weight_": "L d", "bias_": "1"})
    TAKES_POINT = False

    def __init__(self, *, blocks: Sequence[int], ridge: float = 0.01) -> None:
        self.blocks = blocks
        self.ridge = ridge

    @property
    def points(self) -> tuple[ReadPoint, ...]:  # type: ignore[override]
        """The prompt's end at the layers before and behind every block, from below, each once."""
        ends = {layer for block in self.blocks for layer in (block - 1, block)}
        return tuple(ReadPoint(layer, PROMPT_END) for layer in sorted(ends))

    def sizes(self) -> dict[str, int]:
        return {"L": len(self.points)}

    def fit(
        self,
        acts: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; ``validation`` and ``seed`` have no effect."""
        self.check_settings()
        truth = check_labels(acts, labels, f"{self.kind} prober")
        rows, scalings = self._features(acts)
        weights = source_weights(truth, acts.sources).double().numpy()
        l2 = self.ridge * float(weights.sum())
        theta = fit_logistic(rows, truth.double().numpy(), weights, l2=l2)
        self.weight_, self.bias_ = self._folded(torch.from_numpy(theta), scalings)
        return self

    def _steps(self, acts: Activations, block: int) -> Tensor:
        """What ``block`` adds, float32 ``[n, d]`` on the CPU."""
        owner = f"{self.kind} prober"
        before = rows_at(acts, ReadPoint(block - 1, PROMPT_END), owner).cpu()
        after = rows_at(acts, ReadPoint(block, PROMPT_END), owner, width=before.shape[1]).cpu()
        return after - before

    def _features(self, acts: Activations) -> tuple[Array, list[Standardiser]]:
        """Features ``[n, B * d]`` in float64, and each block's scaling, ``sqrt(B)`` in it."""
        scalings, columns = [], []
        for block in self.blocks:
            steps = self._steps(acts, block)
            own = fit_standardiser(steps)
            scalings.append(Standardiser(own.mean, own.scale * math.sqrt(len(self.blocks))))
            columns.append(scalings[-1].apply(steps))
        return torch.cat(columns, 1).double().numpy(), scalings

    def _folded(self, theta: Tensor, scalings: Sequence[Standardiser]) -> tuple[Tensor, Tensor]:
        """``weight_`` and ``bias_`` from ``theta``, float64 ``[B * d + 1]``, intercept last."""
        place = {point.layer: i for i, point in enumerate(self.points)}
        slopes = theta[:-1].reshape(len(self.blocks), -1)
        weight = slopes.new_zeros(len(place), slopes.shape[1])
        bias = theta[-1:].clone()
        for block, slope, scaling in zip(self.blocks, slopes, scalings, strict=True):
            along = slope / scaling.scale
            weight[place[block]] += along
            weight[place[block - 1]] -= along
            bias -= along @ scaling.mean.double()
        return weight.float(), bias.float()

    def score(self, acts: Activations) -> Tensor:
        """See :meth:`Prober.score`."""
        learned, owner = self.learned(), f"{self.kind} prober"
        width = learned["weight_"].shape[1]
        states = [rows_at(acts, point, owner, width=width) for point in self.points]
        logits = learned["bias_"].to(states[0].device)
        for rows, weight in zip(states, learned["weight_"], strict=True):
            logits = logits + (rows @ weight.to(rows.device)).to(logits.device)
        return mark_unreadable(torch.sigmoid(logits), logits[:, None])

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """``(config, tensors)``; see :meth:`Prober.state`."""
        config, tensors = super().state()
        return {**config, "blocks": list(self.blocks)}, tensors
