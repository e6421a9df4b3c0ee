"""What every prober that learns a handful of tensors shares: settings, state, device, unreadable
rows.

Knows nothing of how anything is learned. Shapes: n requests, d hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import (
    ActivationError,
    ArtifactError,
    SettingError,
    check_choice,
)
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import check_shapes, only, take
from safeswitch.core.types import POSITION_KINDS, ReadPoint
from safeswitch.probers.base import Prober, not_fitted
from safeswitch.probers.settings import Limit, setting_faults


class LearnedProber(Prober):
    """A prober that is its settings plus named tensors.

    ``SETTINGS`` names the constructor's plain arguments with their limits, ``LEARNED`` the
    attributes that ``fit`` sets, with their shapes (:func:`safeswitch.core.strict.check_shapes`). A
    member that reads one point takes it as its first argument, ``point``, at a position of one of
    ``POSITIONS``.
    """

    SETTINGS: ClassVar[Mapping[str, Limit]] = {}
    LEARNED: ClassVar[Mapping[str, str]] = {}
    POSITIONS: ClassVar[tuple[str, ...]] = tuple(
        kind for kind in POSITION_KINDS if kind != "window"
    )
    TAKES_POINT: ClassVar[bool] = True

    def settings(self) -> JsonObject:
        """The constructor's plain arguments."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def setting_faults(self) -> list[str]:
        """A message for each setting outside its limits."""
        return setting_faults(f"{self.kind} prober", self.settings(), self.SETTINGS)

    def check_settings(self) -> None:
        """Raise :class:`SettingError` with all faults."""
        faults = self.setting_faults()
        if faults:
            raise SettingError("; ".join(faults))

    def learned(self, device: torch.device | None = None) -> dict[str, Tensor]:
        """The learned tensors by attribute name, on ``device`` (default: where they lie).

        Raises:
            NotFittedError: before ``fit``.
        """
        if not all(hasattr(self, name) for name in self.LEARNED):
            raise not_fitted(self.kind)
        tensors = {name: getattr(self, name) for name in self.LEARNED}
        return tensors if device is None else {name: t.to(device) for name, t in tensors.items()}

    def read(self, activations: Activations) -> tuple[Tensor, dict[str, Tensor]]:
        """States ``[n, d]`` at the prober's point and the learned tensors on their device
        (``mean_`` gives d)."""
        width = len(self.learned()["mean_"])
        rows = rows_at(activations, self.points[0], f"{self.kind} prober", width=width)
        return rows, self.learned(rows.device)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``; see :meth:`Prober.state`."""
        tensors = {name.rstrip("_"): t.detach().cpu().clone() for name, t in self.learned().items()}
        place = {"point": str(self.points[0])} if self.TAKES_POINT else {}
        return {"kind": self.kind, **place, **self.settings()}, tensors

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`.

        Raises:
            ArtifactError: a field or learned tensor that is missing, unknown, of another type or
                shape.
            SettingError: a setting outside its limits.
        """
        where = f"{cls.kind} prober"
        place = ("point",) if cls.TAKES_POINT else ()
        only(config, ("kind", *place, *cls.SETTINGS), where)
        missing = [name for name in cls.SETTINGS if name not in config]
        if missing:
            raise ArtifactError(
                f"{where}: field {missing[0]!r} is missing; it must be {cls.SETTINGS[missing[0]]}"
            )
        arguments = {name: config[name] for name in cls.SETTINGS}
        if cls.TAKES_POINT:
            point = ReadPoint.parse(take(config, "point", str, where))
            check_choice(
                where, f"the position of point {str(point)!r}", point.position.kind, cls.POSITIONS
            )
            arguments["point"] = point
        prober = cls(**arguments)
        prober.check_settings()
        check_shapes(
            where,
            tensors,
            {n.rstrip("_"): shape for n, shape in cls.LEARNED.items()},
            prober.sizes(),
        )
        if "scale" in tensors and not bool(tensors["scale"].all()):
            raise ArtifactError(f"{where}: tensor 'scale' holds a 0; states are divided by it")
        for name in cls.LEARNED:
            setattr(prober, name, tensors[name.rstrip("_")].clone())
        return prober

    def sizes(self) -> dict[str, int]:
        """Letters of the shapes of ``LEARNED`` that the settings decide."""
        return {}


def rows_at(
    activations: Activations, point: ReadPoint, owner: str, width: int | None = None
) -> Tensor:
    """States at ``point`` as float32 ``[n, d]``; a gradient that they carry is kept.

    Raises:
        ActivationError: not recorded, not one state a request, or not ``width`` wide.
    """
    rows = activations.at(point)
    if rows.dim() != 2:
        raise ActivationError(
            f"{owner}: needs one state a request at {point}, [n, d]; got {list(rows.shape)}"
        )
    check_width(rows, width, point, owner)
    return rows.to(torch.float32)


def check_width(states: Tensor, width: int | None, point: ReadPoint, owner: str) -> None:
    """Raise :class:`ActivationError` unless ``states`` ``[..., d]`` are ``width`` wide; None fits
    all."""
    if width is not None and states.shape[-1] != width:
        raise ActivationError(
            f"{owner}: fitted on states {width} wide at {point}; got {states.shape[-1]}"
        )


def mark_unreadable(scores: Tensor, states: Tensor) -> Tensor:
    """Scores ``[n]`` as float32, NaN where the row of ``states`` ``[n, ...]`` holds anything that
    is not finite."""
    readable = torch.isfinite(states).flatten(1).all(1)
    return scores.to(torch.float32).masked_fill(~readable, float("nan"))
