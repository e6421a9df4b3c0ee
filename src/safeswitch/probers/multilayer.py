"""One prober per read point, averaged. Knows nothing of how the inner probers learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import only, take
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, Prober, check_labels, not_fitted
from safeswitch.probers.calibrate import log_odds
from safeswitch.probers.learned import LearnedProber
from safeswitch.probers.mlp import MLPProber
from safeswitch.probers.nested import nest, unnest
from safeswitch.probers.points import Labelled, train_points
from safeswitch.probers.settings import setting_faults


@PROBERS.add("layer_average")
class LayerAverageProber(Prober):
    """Mean of the log-odds of one inner prober per point; averaging layers buys precision (methods
    1.2, ALTSTEER).

    Args:
        points: Where to read; one inner prober each.
        inner: Kind of the inner probers; a kind that reads one point.
        settings: Arguments of each inner prober.

    Attributes:
        probers_: The fitted inner probers, in the order of ``points``.
    """

    kind = "layer_average"

    def __init__(
        self,
        points: Sequence[ReadPoint],
        inner: str = "mlp",
        settings: JsonMapping | None = None,
    ) -> None:
        self.points = tuple(points)
        self.inner = inner
        self.inner_settings = dict(settings or {})

    def check_settings(self) -> None:
        """Raise :class:`SettingError` unless there are points, all different, and ``inner`` reads
        one point."""
        if not self.points or len(set(self.points)) != len(self.points):
            have = ", ".join(map(str, self.points)) or "none"
            raise SettingError(
                f"layer_average prober: points must be one or more, all different; got {have}"
            )
        member = PROBERS[self.inner]
        if not (issubclass(member, LearnedProber) and member.TAKES_POINT):
            raise SettingError(
                "layer_average prober: inner must be a kind that reads one point; got "
                f"{self.inner!r}"
            )
        faults = setting_faults(
            f"layer_average prober: inner {self.inner}", self.inner_settings, member.SETTINGS
        )
        if faults:
            raise SettingError("; ".join(faults))

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; every inner prober is fitted on the same rows and ``labels``
        ``[n]`` bool with the same seed (MLPs in one batch)."""
        self.check_settings()
        truth = check_labels(activations, labels, f"{self.kind} prober")
        make: Any = PROBERS[self.inner]
        fresh = [make(point, **self.inner_settings) for point in self.points]
        if isinstance(fresh[0], MLPProber):
            fresh[0].check_settings()
            trained = train_points(
                activations,
                truth,
                self.points,
                fresh[0].full_recipe(),
                fresh[0].hidden,
                validation=validation,
                seed=seed,
                owner=f"{self.kind} prober",
            )
            self.probers_ = tuple(p.take(trained, i) for i, p in enumerate(fresh))
            return self
        self.probers_ = tuple(
            p.fit(activations, truth, validation=validation, seed=seed) for p in fresh
        )
        return self

    def fitted(self) -> tuple[Prober, ...]:
        """The inner probers; raises :class:`NotFittedError` before ``fit``."""
        if not hasattr(self, "probers_"):
            raise not_fitted(self.kind)
        return self.probers_

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32, of the mean of the inner log-odds."""
        odds = torch.stack([log_odds(p.score(activations)) for p in self.fitted()])
        return torch.sigmoid(odds.mean(0)).float()

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)`` with the inner probers' own, prefixed by their place."""
        configs, tensors = nest(self.fitted())
        config = {"kind": self.kind, "points": [str(p) for p in self.points], "inner": self.inner}
        return {**config, "settings": dict(self.inner_settings), "probers": configs}, tensors

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`."""
        where = f"{cls.kind} prober"
        only(config, ("kind", "points", "inner", "settings", "probers"), where)
        inner = unnest(config, "probers", tensors)
        points = [
            ReadPoint.parse(point) for point in take(config, "points", tuple[str, ...], where)
        ]
        kind, settings = (
            take(config, "inner", str, where),
            take(config, "settings", JsonMapping, where),
        )
        if points != [point for p in inner for point in p.points] or any(
            p.kind != kind for p in inner
        ):
            raise ArtifactError(
                f"{where}: probers must be of kind {kind!r}, one at each of the points, in their "
                "order"
            )
        prober = cls(points, kind, settings)
        prober.check_settings()
        prober.probers_ = inner
        return prober
