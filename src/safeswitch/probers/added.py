"""Logistic regression on what several blocks add to the residual stream.

Three probers: ``steps`` reads what a block adds at the prompt's end, as a whole; ``outputs`` what its
attention and its MLP add there; ``means`` what ``steps`` reads, and its mean over the last tokens.
Shapes: n requests, F groups of features, P points read, d hidden size. Knows nothing of models.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import PARTS, PROMPT_END, Position, ReadPoint
from safeswitch.probers.base import PROBERS, check_labels
from safeswitch.probers.learned import LearnedProber, mark_unreadable, rows_at
from safeswitch.probers.logistic import Array, fit_logistic
from safeswitch.probers.points import Labelled
from safeswitch.probers.settings import Limit, Number, WholeNumbers
from safeswitch.probers.split import source_weights
from safeswitch.probers.standardise import Standardiser, fit_standardiser

Terms = Mapping[ReadPoint, float]
"""A group of features as a sum of states: by what each of them is multiplied."""


class AddedProber(LearnedProber):
    """One logistic regression with L2 on F groups of d features, each a weighted sum of states.

    Every feature is standardised on the fit rows and divided by ``sqrt(F)``. Rows weigh by
    class and source (:func:`safeswitch.probers.split.source_weights`): a large set of one style
    then does not decide what unsafe means, and the starter set decides most.

    All of it is linear in the states, so only the sum is kept: one vector for each point read.
    Scoring costs a dot product a point.

    Args:
        blocks: Numbers of the blocks, the first being 1.
        ridge: Strength of the penalty ``ridge / 2 * |w|^2`` on the weighted *mean* loss, so that it
            means the same for any number of rows. Fixed and not chosen on held-out rows: those come
            from the sources fitted on, for which a weaker penalty always looks better than it is
            for other sources. With kinds of the starter set left out, .01 and .03 do equally well
            and .1 worse; of equals the stronger one is taken.

    Attributes:
        weight_: ``[P, d]``, in the order of ``points``.
        bias_: ``[1]``.
    """

    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {"blocks": WholeNumbers(1, 2**12), "ridge": Number(1e-8, 1e4)}
    )
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType({"weight_": "P d", "bias_": "1"})
    TAKES_POINT = False

    def __init__(self, *, blocks: Sequence[int], ridge: float = 0.03) -> None:
        self.blocks = blocks
        self.ridge = ridge

    @property
    @abstractmethod
    def groups(self) -> tuple[Terms, ...]:
        """The F groups of features."""

    @property
    def points(self) -> tuple[ReadPoint, ...]:  # type: ignore[override]
        """Everything that the groups are made of, from below, each once."""
        return tuple(sorted({point for terms in self.groups for point in terms}))

    def sizes(self) -> dict[str, int]:
        return {"P": len(self.points)}

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; ``labels`` ``[n]`` bool; ``validation`` and ``seed`` have no
        effect."""
        self.check_settings()
        truth = check_labels(activations, labels, f"{self.kind} prober")
        rows, scalings = self.features(activations)
        weights = source_weights(truth, activations.sources).double().numpy()
        l2 = self.ridge * float(weights.sum())
        theta = fit_logistic(rows, truth.double().numpy(), weights, l2=l2)
        self.weight_, self.bias_ = self.folded(torch.from_numpy(theta), scalings)
        return self

    def summed(self, activations: Activations, terms: Terms) -> Tensor:
        """The features of one group, float32 ``[n, d]`` on the CPU."""
        owner = f"{self.kind} prober"
        points = list(terms)
        total = terms[points[0]] * rows_at(activations, points[0], owner).cpu()
        for point in points[1:]:
            total += terms[point] * rows_at(activations, point, owner, width=total.shape[1]).cpu()
        return total

    def features(self, activations: Activations) -> tuple[Array, list[Standardiser]]:
        """Features ``[n, F * d]`` in float64, and each group's scaling, ``sqrt(F)`` in it."""
        groups = self.groups
        scalings, columns = [], []
        for terms in groups:
            summed = self.summed(activations, terms)
            own = fit_standardiser(summed)
            scalings.append(Standardiser(own.mean, own.scale * math.sqrt(len(groups))))
            columns.append(scalings[-1].apply(summed))
        return torch.cat(columns, 1).double().numpy(), scalings

    def folded(self, theta: Tensor, scalings: Sequence[Standardiser]) -> tuple[Tensor, Tensor]:
        """``weight_`` and ``bias_`` from ``theta``, float64 ``[F * d + 1]``, intercept last."""
        place = {point: i for i, point in enumerate(self.points)}
        slopes = theta[:-1].reshape(len(self.groups), -1)
        weight = slopes.new_zeros(len(place), slopes.shape[1])
        bias = theta[-1:].clone()
        for terms, slope, scaling in zip(self.groups, slopes, scalings, strict=True):
            along = slope / scaling.scale
            bias -= along @ scaling.mean.double()
            for point, factor in terms.items():
                weight[place[point]] += factor * along
        return weight.float(), bias.float()

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from P points' states ``[n, d]``."""
        learned, owner = self.learned(), f"{self.kind} prober"
        width = learned["weight_"].shape[1]
        states = [rows_at(activations, point, owner, width=width) for point in self.points]
        logits = learned["bias_"].to(states[0].device)
        for rows, weight in zip(states, learned["weight_"], strict=True):
            logits = logits + (rows @ weight.to(rows.device)).to(logits.device)
        return mark_unreadable(torch.sigmoid(logits), logits[:, None])

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``, these ``weight`` ``[P, d]`` and ``bias`` ``[1]``, float32; see
        :meth:`Prober.state`."""
        config, tensors = super().state()
        return {**config, "blocks": list(self.blocks)}, tensors


@PROBERS.add("steps")
class StepsProber(AddedProber):
    """:class:`AddedProber` on the steps ``h[b] - h[b - 1]`` of several blocks b.

    Block b takes layer ``b - 1`` to layer b. A model's last block is none of them, since the last
    layer's state is that behind the final norm. A layer between two of the blocks is read once.
    """

    kind = "steps"

    @property
    def groups(self) -> tuple[Terms, ...]:
        """A difference of two layers for each block."""
        return tuple(
            {ReadPoint(block - 1, PROMPT_END): -1.0, ReadPoint(block, PROMPT_END): 1.0}
            for block in self.blocks
        )


@PROBERS.add("means")
class MeansProber(StepsProber):
    """:class:`StepsProber` that reads every step twice: at the prompt's end, and as the mean over the
    prompt's last tokens.

    The end knows the whole request, but is one reading; the tokens before it are many, each with a
    view of its own. Kinds of harm are told apart better with them.

    Args:
        tokens: How many tokens the mean is over, at most.
    """

    kind = "means"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {**StepsProber.SETTINGS, "tokens": Number(1, 2**12, whole=True)}
    )

    def __init__(self, *, blocks: Sequence[int], ridge: float = 0.03, tokens: int = 24) -> None:
        super().__init__(blocks=blocks, ridge=ridge)
        self.tokens = tokens

    @property
    def groups(self) -> tuple[Terms, ...]:
        """The steps at the prompt's end, and those of the mean."""
        mean = Position("mean", self.tokens)
        ends = super().groups
        return ends + tuple({replace(p, position=mean): t[p] for p in t} for t in ends)


@PROBERS.add("outputs")
class OutputsProber(AddedProber):
    """:class:`AddedProber` on what attention and MLP of several blocks add, each on its own."""

    kind = "outputs"

    @property
    def groups(self) -> tuple[Terms, ...]:
        """One output each: two for each block."""
        points = [ReadPoint(block, PROMPT_END, part) for block in self.blocks for part in PARTS]
        return tuple({point: 1.0} for point in points)
