"""Changes of weights as actions: low-rank adapters, and differences in chosen places.

Letters: r rank, m entries. Knows nothing of gates or of how the changes came about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from safeswitch.core.errors import ArtifactError, SettingError, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import build, check_shapes, only, shown, take
from safeswitch.switch.actuators.base import ACTUATORS, MOST_STRENGTH, BodyActuator

_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


def _check_names(owner: str, field: str, names: tuple[str, ...]) -> None:
    """Raise :class:`ArtifactError` unless all are names of modules or parameters, each once."""
    if len(set(names)) != len(names):
        raise ArtifactError(f"{owner}: {field} names one twice")
    for name in names:
        if not _NAME.fullmatch(name):
            raise ArtifactError(f"{owner}: {field} must be words joined by dots; got {shown(name)}")


@ACTUATORS.add("adapter")
@dataclass(frozen=True, eq=False)
class Adapter(BodyActuator):
    """Low-rank differences of linear modules: their output grows by ``strength * up @ (down @ x)``.

    Args:
        factors: By module name, ``down`` ``[r, d_in]`` and ``up`` ``[d_out, r]``.
        strength: Multiplier; 1 is what was trained.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    strength: float = 1.0
    kind: ClassVar[str] = "adapter"

    def __post_init__(self) -> None:
        check_range("Adapter", "strength", self.strength, -MOST_STRENGTH, MOST_STRENGTH)
        for name, (down, up) in self.factors.items():
            if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
                raise SettingError(
                    f"Adapter: down [r, d_in] and up [d_out, r] of {name} do not fit"
                )

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        tensors = {f"{name}.down": down for name, (down, _) in self.factors.items()}
        tensors |= {f"{name}.up": up for name, (_, up) in self.factors.items()}
        return {
            "kind": self.kind,
            "modules": list(self.factors),
            "strength": self.strength,
        }, tensors

    @classmethod
    def rebuild(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """See :meth:`Actuator.rebuild`; ``down`` ``[r, d_in]`` and ``up`` ``[d_out, r]`` of each module."""
        where = f"actuator {cls.kind!r}"
        modules = take(config, "modules", tuple[str, ...], where)
        _check_names(where, "modules", modules)
        known = [f"{name}.{part}" for name in modules for part in ("down", "up")]
        only(tensors, known, f"{where}, tensors")
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name in modules:
            pair = {
                part: tensors[f"{name}.{part}"]
                for part in ("down", "up")
                if f"{name}.{part}" in tensors
            }
            check_shapes(f"{where}: module {name!r}", pair, {"down": "r i", "up": "o r"})
            factors[name] = pair["down"], pair["up"]
        own = {name: value for name, value in config.items() if name != "modules"}
        return build(cls, own, where, factors=factors)


@ACTUATORS.add("weights")
@dataclass(frozen=True, eq=False)
class Weights(BodyActuator):
    """Differences of parameters, in chosen places; the whole batch runs on the changed weights.

    Args:
        names: Parameter names.
        counts: Entries that belong to each, in order.
        places: ``[m]`` flat index of each entry in its parameter.
        values: ``[m]``.
        strength: Multiplier.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    places: Tensor
    values: Tensor
    strength: float = 1.0
    kind: ClassVar[str] = "weights"
    shapes: ClassVar[Mapping[str, str]] = {"places": "int m", "values": "m"}
    per_row: ClassVar[bool] = False
    _split: Mapping[str, tuple[Tensor, Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "counts", tuple(int(count) for count in self.counts))
        _check_names("Weights", "names", self.names)
        check_range("Weights", "strength", self.strength, -MOST_STRENGTH, MOST_STRENGTH)
        if min(self.counts, default=0) < 0 or (len(self.places) and int(self.places.min()) < 0):
            raise SettingError("Weights: counts and places must be 0 or more")
        if len(self.names) != len(self.counts) or not sum(self.counts) == len(self.places) == len(
            self.values
        ):
            raise SettingError(
                "Weights: counts must say how many of places and values belong to each name"
            )
        pairs = zip(
            self.places.split(list(self.counts)), self.values.split(list(self.counts)), strict=True
        )
        object.__setattr__(self, "_split", dict(zip(self.names, pairs, strict=True)))

    @classmethod
    def of(cls, differences: Mapping[str, Tensor], strength: float = 1.0) -> Self:
        """The m entries of ``differences``, parameter-shaped tensors by name, that are not 0, as
        flat places ``[m]`` and values ``[m]``.

        Raises:
            SettingError: all of them are 0.
        """
        places = {name: d.flatten().nonzero().flatten() for name, d in differences.items()}
        names = tuple(name for name, index in places.items() if len(index))
        if not names:
            raise SettingError("Weights: the differences are 0 everywhere")
        values = torch.cat([differences[name].flatten()[places[name]] for name in names])
        return cls(
            names,
            tuple(len(places[n]) for n in names),
            torch.cat([places[n] for n in names]),
            values,
            strength,
        )

    def entries(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """By parameter name, flat places ``[k]`` and values ``[k]`` of its k entries."""
        return self._split

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        config = {
            "kind": self.kind,
            "names": list(self.names),
            "counts": list(self.counts),
            "strength": self.strength,
        }
        return config, {"places": self.places, "values": self.values}
