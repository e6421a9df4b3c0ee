"""Probers that ask for tokens to be appended: one around any prober that says which, and two
training-free readers for what comes of it.

Shapes: n requests, L layers, d hidden size. Know nothing of models or tokenizers; tokens are
    numbers here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ArtifactError, SettingError, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import check_shapes, only, take
from safeswitch.core.types import MOST_TOKENS, Position, ReadPoint
from safeswitch.probers.base import PROBERS, Prober, check_labels, not_fitted
from safeswitch.probers.learned import mark_unreadable, rows_at
from safeswitch.probers.nested import nest, unnest
from safeswitch.probers.points import Labelled

APPENDED = Position("appended")
_LIKELIHOOD: Mapping[str, type] = {"layer": int, "tokens": int, "beta": float}


@PROBERS.add("appending")
class AppendingProber(Prober):
    """Another prober, with the tokens after which its ``appended`` and ``nll`` points are read.

    Args:
        inner: What scores.
        appended: Token ids of the model that it is fitted on.
    """

    kind = "appending"

    def __init__(self, inner: Prober, appended: Sequence[int]) -> None:
        self.inner, self.points = inner, inner.points
        self.appended = tuple(int(token) for token in appended)
        self.reads_text = inner.reads_text
        if not self.appended:
            raise SettingError("appending prober: name one token or more to append")
        for token in self.appended:
            check_range("appending prober", "a token to append", token, 0, 2**31)

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit the inner prober on ``labels`` ``[n]`` bool."""
        self.inner = self.inner.fit(activations, labels, validation=validation, seed=seed)
        return self

    def score(self, activations: Activations) -> Tensor:
        """The inner prober's score, ``[n]`` float32."""
        return self.inner.score(activations)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``; see :meth:`Prober.state`."""
        configs, tensors = nest([self.inner])
        return {"kind": self.kind, "appended": list(self.appended), "probers": configs}, tensors

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`."""
        where = f"{cls.kind} prober"
        only(config, ("kind", "appended", "probers"), where)
        inner = unnest(config, "probers", tensors)
        if len(inner) != 1:
            raise ArtifactError(f"{where}: holds one prober; got {len(inner)}")
        return cls(inner[0], take(config, "appended", tuple[int, ...], where))


@PROBERS.add("transition")
class TransitionProber(Prober):
    """How far appended tokens move the states as they do behind unsafe requests (SCANS, arXiv
    2408.11491, section 3).

    With ``t_l = h_l(prompt's end) - h_l(appended)``, the score is ``(1 + s) / 2`` with ``s = mean_l
    cos(t_l, mean over unsafe anchors of t_l)``. There is nothing to learn but that mean.

    Args:
        layers: Layer numbers.

    Attributes:
        reference_: ``[L, d]``.
    """

    kind = "transition"

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self.points = tuple(
            ReadPoint(layer, where)
            for layer in self.layers
            for where in (Position("prompt_end"), APPENDED)
        )

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """Take the mean over the positive rows of ``labels`` ``[n]`` bool; ``validation`` and
        ``seed`` have no effect."""
        truth = check_labels(activations, labels, f"{self.kind} prober")
        self.reference_ = self._moves(activations)[truth].mean(0)
        return self

    def _moves(self, activations: Activations) -> Tensor:
        """``[n, L, d]``"""
        owner = f"{self.kind} prober"
        states = [rows_at(activations, point, owner) for point in self.points]
        pairs = zip(states[::2], states[1::2], strict=True)
        return torch.stack([end - after.to(end.device) for end, after in pairs], 1)

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from two states ``[n, d]`` a layer."""
        if not hasattr(self, "reference_"):
            raise not_fitted(self.kind)
        moves = self._moves(activations)
        likeness = functional.cosine_similarity(
            moves, self.reference_.to(moves.device)[None], dim=-1
        ).mean(1)
        return mark_unreadable((1 + likeness) / 2, moves)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``, the one tensor being ``reference`` ``[L, d]``; see
        :meth:`Prober.state`."""
        if not hasattr(self, "reference_"):
            raise not_fitted(self.kind)
        return {"kind": self.kind, "layers": list(self.layers)}, {
            "reference": self.reference_.clone()
        }

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`, from ``reference`` ``[L, d]``."""
        where = f"{cls.kind} prober"
        only(config, ("kind", "layers"), where)
        prober = cls(take(config, "layers", tuple[int, ...], where))
        check_shapes(where, tensors, {"reference": "L d"}, {"L": len(prober.layers)})
        prober.reference_ = tensors["reference"].clone()
        return prober


@PROBERS.add("likelihood")
class LikelihoodProber(Prober):
    """How readily the model itself would say the appended note (SafeProbing, arXiv 2601.10543).

    Score ``2 / (1 + exp(beta * NLL))``, NLL being the mean negative log-likelihood of the note's
    last tokens in nats; the published bar, NLL below 2, is a score above 0.538. Nothing is learned.

    Args:
        layer: Number of the top layer (the likelihood belongs to no other).
        tokens: Tokens of the note that are counted, from its end.
        beta: Slope, per nat.
    """

    kind = "likelihood"

    def __init__(self, layer: int, tokens: int = 4, beta: float = 0.5) -> None:
        check_range("likelihood prober", "tokens", tokens, 1, MOST_TOKENS)
        check_range("likelihood prober", "beta", beta, 0.0, 1e6)
        self.layer, self.tokens, self.beta = layer, tokens, beta
        self.points = (ReadPoint(layer, Position("nll", tokens)),)

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """Nothing to learn; ``labels`` ``[n]`` bool are only checked."""
        check_labels(activations, labels, f"{self.kind} prober")
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from likelihoods ``[n, 1]`` in nats."""
        nll = rows_at(activations, self.points[0], f"{self.kind} prober", width=1)
        return mark_unreadable(2 * torch.sigmoid(-self.beta * nll[:, 0]), nll)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``; see :meth:`Prober.state`."""
        return {
            "kind": self.kind,
            "layer": self.layer,
            "tokens": self.tokens,
            "beta": self.beta,
        }, {}

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`."""
        where = f"{cls.kind} prober"
        only(config, ("kind", *_LIKELIHOOD), where)
        only(tensors, (), f"{where}, tensors")
        return cls(**{name: take(config, name, hint, where) for name, hint in _LIKELIHOOD.items()})
