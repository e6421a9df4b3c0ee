"""Many small readers, each of its own random layer and subspace, so that no one direction decides.

Obfuscated activations (Bailey et al., arXiv 2412.09565) move what one known prober reads; here an
attacker has to move random projections at several depths at once, and a new draw costs seconds. The
same paper breaks ensembles that it may differentiate through, and ``benchmarks/ensemble.py`` finds
no higher price on the embedded model.

Shapes: M members, n requests, d hidden size, s size of the subspaces. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ArtifactError, SettingError, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import check_shapes, only, shown, take
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, Prober, check_labels, not_fitted
from safeswitch.probers.learned import mark_unreadable, rows_at
from safeswitch.probers.logistic import fit_logistic
from safeswitch.probers.points import Labelled
from safeswitch.probers.split import balanced_weights
from safeswitch.probers.standardise import fit_standardiser

_SETTINGS: Mapping[str, type] = {"members": int, "size": int, "quantile": float, "l2": float}
_SHAPES: Mapping[str, str] = {"places": "int M", "bases": "M s d", "weights": "M s", "offsets": "M"}
_MOST = 2**16


@PROBERS.add("ensemble")
class EnsembleProber(Prober):
    """Logistic readers of random subspaces; score is the sigmoid of a quantile of their log-odds.

    Args:
        points: Where members may read; each member draws one.
        members: How many.
        size: Dimensions of each random subspace, at most d.
        quantile: In [0, 1]: 0.5 is the median; more lets fewer members carry the verdict.
        l2: Strength of the penalty on each member's summed loss.

    Attributes:
        bases_: ``[M, s, d]`` with orthonormal rows.
        weights_, offsets_: ``[M, s]`` and ``[M]``.
        places_: Index into ``points`` of each member, ``[M]``.
    """

    kind = "ensemble"

    def __init__(
        self,
        points: Sequence[ReadPoint],
        members: int = 16,
        size: int = 32,
        quantile: float = 0.5,
        l2: float = 1.0,
    ) -> None:
        check_range("ensemble prober", "quantile", quantile, 0.0, 1.0)
        if not points:
            raise SettingError("ensemble prober: points must be one or more")
        check_range("ensemble prober", "members", members, 1, _MOST)
        check_range("ensemble prober", "size", size, 1, _MOST)
        check_range("ensemble prober", "l2", l2, 0.0, 1e8)
        self.points = tuple(points)
        self.members, self.size, self.quantile, self.l2 = members, size, quantile, l2

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """Draw the subspaces from ``seed`` and fit each member on ``labels`` ``[n]`` bool;
        ``validation`` has no effect."""
        truth = check_labels(activations, labels, f"{self.kind} prober")
        draw = torch.Generator().manual_seed(seed)
        targets, weights = truth.double().numpy(), balanced_weights(truth).double().numpy()
        places, bases, learned, offsets = [], [], [], []
        for _ in range(self.members):
            place = int(torch.randint(len(self.points), (1,), generator=draw))
            rows = rows_at(activations, self.points[place], f"{self.kind} prober").cpu()
            size = min(self.size, rows.shape[1])
            basis = torch.linalg.qr(
                torch.randn(rows.shape[1], size, generator=draw)
            ).Q.T.contiguous()
            seen = rows @ basis.T
            scaling = fit_standardiser(seen)
            theta = torch.from_numpy(
                fit_logistic(scaling.apply(seen).double().numpy(), targets, weights, l2=self.l2)
            ).float()
            slope = theta[:-1] / scaling.scale
            places.append(place)
            bases.append(basis)
            learned.append(slope)
            offsets.append(theta[-1] - slope @ scaling.mean)
        self.places_ = torch.tensor(places)
        self.bases_, self.weights_, self.offsets_ = (
            torch.stack(bases),
            torch.stack(learned),
            torch.stack(offsets),
        )
        return self

    def _check(self) -> None:
        if not hasattr(self, "places_"):
            raise not_fitted(self.kind)

    @property
    def directions(self) -> Tensor:
        """Each member's direction in the hidden space, ``[M, d]``."""
        self._check()
        return torch.einsum("ms,msd->md", self.weights_, self.bases_)

    def member_odds(self, activations: Activations) -> Tensor:
        """Log-odds of every member, ``[M, n]``, differentiable in the states."""
        ways, owner = self.directions, f"{self.kind} prober"
        states = [rows_at(activations, p, owner, width=ways.shape[1]) for p in self.points]
        members = [
            states[int(place)] @ ways[i].to(states[int(place)]) + float(self.offsets_[i])
            for i, place in enumerate(self.places_)
        ]
        return torch.stack([m.to(members[0].device) for m in members])

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from the points' states ``[n, d]``."""
        odds = self.member_odds(activations)
        return mark_unreadable(torch.sigmoid(odds.quantile(self.quantile, dim=0)), odds.T)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``, these ``places`` ``[M]``, ``bases`` ``[M, s, d]``,
        ``weights`` ``[M, s]`` and ``offsets`` ``[M]``; see :meth:`Prober.state`."""
        self._check()
        config = {"kind": self.kind, "points": [str(p) for p in self.points]}
        config |= {name: getattr(self, name) for name in _SETTINGS}
        return config, {name: getattr(self, f"{name}_").clone() for name in _SHAPES}

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`, from ``bases`` ``[M, s, d]`` and the others of M members."""
        where = f"{cls.kind} prober"
        only(config, ("kind", "points", *_SETTINGS), where)
        points = [
            ReadPoint.parse(point) for point in take(config, "points", tuple[str, ...], where)
        ]
        prober = cls(
            points, **{name: take(config, name, hint, where) for name, hint in _SETTINGS.items()}
        )
        found = check_shapes(where, tensors, _SHAPES, {"M": prober.members})
        if found["s"] != min(prober.size, found["d"]):
            raise ArtifactError(
                f"{where}: tensor 'bases' has {found['s']} rows a member; size and width allow "
                f"{min(prober.size, found['d'])}"
            )
        places = tensors["places"]
        if not 0 <= int(places.min()) <= int(places.max()) < len(points):
            raise ArtifactError(
                f"{where}: tensor 'places' must lie in 0..{len(points) - 1}; got "
                f"{shown(places.tolist())}"
            )
        for name in _SHAPES:
            setattr(prober, f"{name}_", tensors[name].clone())
        return prober
