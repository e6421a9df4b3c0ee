"""The contract of every prober, and the table they are registered in.

Knows nothing of models, gates or files on disk (only of tensors and a plain-JSON config).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, NotFittedError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.registry import Registry
from safeswitch.core.strict import mapping, take
from safeswitch.core.types import ReadPoint

PROBERS: Registry[type[Prober]] = Registry("prober", "safeswitch.probers", "safeswitch.probers")


class Prober(ABC):
    """Reads states at ``points`` and says how likely a request is of the positive class.

    The constructor stores, ``fit`` checks and learns (learned names end in ``_``) and returns self;
    a fitted prober is never changed by ``score``. ``fit`` with the same data and seed gives the
    same prober.
    """

    kind: ClassVar[str]
    points: tuple[ReadPoint, ...]
    reads_text: bool = False
    """Whether ``score`` needs the requests' plain text."""
    appended: tuple[int, ...] = ()
    """Token ids after which points of kind ``appended`` and ``nll`` are read, in a pass of their
    own."""

    @abstractmethod
    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: tuple[Activations, Tensor] | None = None,
        seed: int = 0,
    ) -> Self:
        """Learn from ``activations`` (n requests) and ``labels`` ``[n]`` bool.

        Raises:
            FitError: labels of one class only, of another length, or no data.
            ActivationError: states that are missing or not finite.
        """

    @abstractmethod
    def score(self, activations: Activations) -> Tensor:
        """Probability of the positive class, float32 ``[n]`` on the states' device.

        NaN in a row's states must give NaN in its score: the gate decides what that means.

        Raises:
            NotFittedError: before ``fit``.
        """

    @abstractmethod
    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``: plain JSON and tensors from which :meth:`from_state` rebuilds the
        prober."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`; see :func:`prober_from_state` for what is refused."""


def not_fitted(kind: str) -> NotFittedError:
    """The error of a prober of that kind which is asked for a score or its state before ``fit``."""
    return NotFittedError(
        f"{kind} prober: not fitted; call fit(activations, labels) before score or state"
    )


def check_labels(activations: Activations, labels: Tensor, owner: str) -> Tensor:
    """Return ``labels`` as bool ``[n]`` after the checks that every ``fit`` makes."""
    flat = torch.as_tensor(labels).flatten().bool().cpu()
    if len(flat) != len(activations):
        raise FitError(f"{owner}: {len(activations)} requests but {len(flat)} labels")
    positives = int(flat.sum())
    if positives == 0 or positives == len(flat):
        raise FitError(
            f"{owner}: needs both classes; got {positives} positive and {len(flat) - positives} "
            "negative labels"
        )
    activations.check_finite()
    return flat


def prober_from_state(config: JsonMapping, tensors: Mapping[str, Tensor]) -> Prober:
    """Rebuild whatever prober wrote ``config`` (its ``kind`` names the class).

    Raises:
        ArtifactError: a field or tensor that is unknown, missing, of another type or shape, or not
            finite.
        SettingError: an unknown kind, or a value outside its range.
    """
    kind = take(mapping(config, "prober"), "kind", str, "prober")
    return PROBERS[kind].from_state(config, tensors)
