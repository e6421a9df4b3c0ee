"""Several readers, one score: log-odds fusion. Knows nothing of how the readers learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import check_shapes, only, take
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, Prober, check_labels, not_fitted
from safeswitch.probers.calibrate import log_odds, platt_targets
from safeswitch.probers.logistic import fit_logistic
from safeswitch.probers.nested import nest, unnest
from safeswitch.probers.points import Labelled
from safeswitch.probers.split import balanced_weights, stratified_split

WEIGHTS = ("equal", "fitted")
STACK_FRACTION = 0.2
STACK_L2 = 1.0


@PROBERS.add("fusion")
class FusionProber(Prober):
    """``sigmoid(sum_i weight_i * log_odds(score_i) + bias)`` over readers of any kind.

    Readings that fail differently correct one another; Constitutional Classifiers++ (arXiv
    2601.04603) ships a fixed 0.55 / 0.45 mixture of probe and classifier.

    ``equal``: every weight is 1 / R, bias 0, readers fitted on all rows. ``fitted``: readers are
    fitted on the fit rows, then weights of 0 or more are stacked by logistic regression on rows the
    readers never saw (``validation``, else a part held out), pulled towards 1 / R so that separable
    rows do not send them to infinity.

    Args:
        readers: The inner probers; ``fit`` fits them.
        weights: ``equal`` or ``fitted``.

    Attributes:
        weights_: ``[R]``, 0 or more.
        bias_: ``[1]``.
    """

    kind = "fusion"

    def __init__(self, readers: Sequence[Prober], *, weights: str = "equal") -> None:
        self.readers = tuple(readers)
        self.weights = weights

    @property
    def points(self) -> tuple[ReadPoint, ...]:  # type: ignore[override]
        """All points that some reader reads, in order, each once."""
        return tuple(dict.fromkeys(point for reader in self.readers for point in reader.points))

    @property
    def reads_text(self) -> bool:  # type: ignore[override]
        return any(reader.reads_text for reader in self.readers)

    def check_settings(self) -> None:
        """Raise :class:`SettingError` without readers, with one reader twice, or with an unknown
        kind of weights."""
        check_choice("fusion prober", "weights", self.weights, WEIGHTS)
        if not self.readers or len({id(r) for r in self.readers}) != len(self.readers):
            raise SettingError(
                "fusion prober: readers must be one or more different probers; got "
                f"{len(self.readers)}"
            )

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """Fit the R readers, then their weights, on ``labels`` ``[n]`` bool; see
        :meth:`Prober.fit`."""
        self.check_settings()
        truth = check_labels(activations, labels, f"{self.kind} prober")
        count = len(self.readers)
        if self.weights == "equal":
            for reader in self.readers:
                reader.fit(activations, truth, validation=validation, seed=seed)
            self.weights_, self.bias_ = torch.full((count,), 1.0 / count), torch.zeros(1)
            return self
        if validation is None:
            fit_rows, held_rows = stratified_split(truth, STACK_FRACTION, seed)
            validation = activations.select(held_rows), truth[held_rows]
            activations, truth = activations.select(fit_rows), truth[fit_rows]
        held_truth = check_labels(*validation, owner=f"{self.kind} prober (validation)")
        for reader in self.readers:
            reader.fit(activations, truth, seed=seed)
        odds = torch.stack(
            [log_odds(r.score(validation[0])).cpu() for r in self.readers], 1
        ).numpy()
        self.weights_, self.bias_ = stack(odds, held_truth)
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32; NaN from any reader is NaN here."""
        if not hasattr(self, "weights_"):
            raise not_fitted(self.kind)
        odds = torch.stack([log_odds(r.score(activations)) for r in self.readers], 1)
        logits = odds @ self.weights_.to(odds) + self.bias_.to(odds)
        return torch.sigmoid(logits).float()

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``: ``weights`` ``[R]``, ``bias`` ``[1]``, and the readers' own,
        prefixed by their place."""
        if not hasattr(self, "weights_"):
            raise not_fitted(self.kind)
        configs, tensors = nest(self.readers)
        own = {"weights": self.weights_.clone(), "bias": self.bias_.clone()}
        return {"kind": self.kind, "weights": self.weights, "readers": configs}, {**tensors, **own}

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`, from ``weights`` ``[R]``, ``bias`` ``[1]`` and the readers'
        own."""
        where = f"{cls.kind} prober"
        only(config, ("kind", "weights", "readers"), where)
        own = {name: tensor for name, tensor in tensors.items() if "." not in name}
        inner = {name: tensor for name, tensor in tensors.items() if "." in name}
        prober = cls(unnest(config, "readers", inner), weights=take(config, "weights", str, where))
        prober.check_settings()
        check_shapes(where, own, {"weights": "R", "bias": "1"}, {"R": len(prober.readers)})
        prober.weights_, prober.bias_ = own["weights"].clone(), own["bias"].clone()
        return prober


def stack(odds: NDArray[np.float64], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative weights ``[R]`` and bias ``[1]`` from log-odds ``[n, R]`` and labels ``[n]``
    bool."""
    count = odds.shape[1]
    theta = fit_logistic(
        odds,
        platt_targets(labels.numpy()),
        balanced_weights(labels).double().numpy(),
        l2=STACK_L2,
        centre=np.full(count, 1.0 / count),
        nonnegative=True,
    )
    found = torch.from_numpy(theta).float()
    return found[:-1].clone(), found[-1:].clone()
