"""From what a bundle's files hold to gate and action; what does not fit, itself or the base model,
is refused by name.

A prober that cannot run would, under ``fail: open``, let everything pass: so each is tried here on
states of the base model's width. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import build, mapping, only, shown, take
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import Prober, prober_from_state
from safeswitch.probers.harms import HarmReader
from safeswitch.switch.actuators.base import Actuator, HeadActuator, Steering
from safeswitch.switch.gate import Gate, Stage

STAGES = ("stage1", "stage2", "watch", "late")


class Sizes(Protocol):
    """What of a base model decides what fits it."""

    @property
    def num_layers(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...


def gate_from(config: JsonMapping, tensors: Mapping[str, Tensor]) -> Gate:
    """The gate of a configuration and all probers' tensors.

    Raises:
        ArtifactError, SettingError: what is wrong, by its place.
    """
    stages = take(config, "stages", JsonMapping, "gate")
    only(stages, STAGES, "gate.stages")
    made: JsonObject = {name: _stage(entry, name, tensors) for name, entry in stages.items()}
    own = {name: value for name, value in config.items() if name not in ("stages", "harms")}
    made["harms"] = _harms(config["harms"], tensors) if "harms" in config else None
    if "late" not in made and "late_every" in own:
        raise ArtifactError("gate: late_every has no meaning without a stage 'late'")
    gate = build(
        Gate,
        own,
        "gate",
        absent=[*STAGES, *([] if "late" in made else ["late_every"])],
        rules=None,
        **made,
    )
    known = {*stages, *(["harms"] if "harms" in config else [])}
    alone = [name for name in tensors if name.partition(".")[0] not in known]
    if alone:
        raise ArtifactError(
            f"tensor {shown(alone[0])} belongs to none of the stages "
            f"{', '.join(stages) or '(none)'}"
        )
    return gate


def _harms(stored: object, tensors: Mapping[str, Tensor]) -> HarmReader:
    config = mapping(stored, "gate.harms")
    try:
        reader = HarmReader.from_state(config, _own(tensors, "harms"))
    except (ArtifactError, SettingError) as error:
        raise type(error)(f"gate.harms: {error}") from error
    _check_positive("gate.harms", reader.points)
    return reader


def _own(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one part, without its name."""
    lead = f"{name}."
    return {key.removeprefix(lead): t for key, t in tensors.items() if key.startswith(lead)}


def _check_positive(where: str, points: Sequence[ReadPoint]) -> None:
    negative = [point for point in points if point.layer < 0]
    if negative:
        raise ArtifactError(f"{where}: a layer must be 0 or more; got {negative[0]}")


def _stage(stored: object, name: str, tensors: Mapping[str, Tensor]) -> Stage:
    where = f"gate.stages.{name}"
    entry = dict(mapping(stored, where))
    config = take(entry, "prober", JsonMapping, where)
    del entry["prober"]
    try:
        prober = prober_from_state(config, _own(tensors, name))
    except (ArtifactError, SettingError) as error:
        raise type(error)(f"{where}.prober: {error}") from error
    _check_positive(f"{where}.prober", prober.points)
    return build(Stage, entry, where, prober=prober)


def check_fits(gate: Gate, actuator: Actuator, base: Sizes) -> None:
    """Hold gate and action to the base model that they are said to be made for.

    Raises:
        ArtifactError, SettingError: a layer or token that it does not have, or a part made for
            another width.
    """
    for name in STAGES:
        stage: Stage | None = getattr(gate, name)
        if stage is not None:
            _check_stage(f"gate.stages.{name}", stage.prober, base)
    if gate.harms is not None:
        _check_harms(gate.harms, base)
    if isinstance(actuator, HeadActuator):
        actuator.check(base.hidden_size, base.vocab_size)
    if isinstance(actuator, Steering):
        _check_layers("actuator 'steering'", actuator.layers, base)
        if actuator.vectors.shape[1] != base.hidden_size:
            raise ArtifactError(
                f"actuator 'steering': vectors are {actuator.vectors.shape[1]} wide; the base "
                f"model is {base.hidden_size}"
            )


def _check_harms(reader: HarmReader, base: Sizes) -> None:
    _check_layers("gate.harms", tuple(point.layer for point in reader.points), base)
    width = int(reader.weight.shape[2])
    if width != base.hidden_size:
        raise ArtifactError(
            f"gate.harms: its reader reads states {width} wide; those of the base model are "
            f"{base.hidden_size} wide"
        )


def _check_layers(where: str, layers: tuple[int, ...], base: Sizes) -> None:
    wrong = [layer for layer in layers if layer > base.num_layers]
    if wrong:
        raise ArtifactError(
            f"{where}: layer {wrong[0]} does not exist; the base model has 0..{base.num_layers}"
        )


def _check_stage(where: str, prober: Prober, base: Sizes) -> None:
    _check_layers(where, tuple(point.layer for point in prober.points), base)
    unknown = [token for token in prober.appended if token >= base.vocab_size]
    if unknown:
        raise ArtifactError(
            f"{where}: token {unknown[0]} cannot be appended; the base model has "
            f"0..{base.vocab_size - 1}"
        )
    try:
        scores = prober.score(_states(prober, base.hidden_size))
    except Exception as error:  # whatever it is, it would be so for every request
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(
            f"{where}: its prober cannot read states {base.hidden_size} wide: {reason}"
        ) from error
    if scores.shape != (2,) or not bool(((scores >= 0) & (scores <= 1)).all()):
        raise ArtifactError(
            f"{where}: its prober must give one score in [0, 1] a request; got "
            f"{shown(scores.tolist())}"
        )


def _states(prober: Prober, width: int) -> Activations:
    """Two requests as the prober reads them: states of zeros, and of ones."""
    states: dict[ReadPoint, Tensor] = {}
    masks: dict[ReadPoint, Tensor] = {}
    for point in prober.points:
        shape = {"nll": (2, 1), "window": (2, 3, width)}.get(point.position.kind, (2, width))
        states[point] = torch.stack([torch.zeros(shape[1:]), torch.ones(shape[1:])])
        if point.position.kind == "window":
            masks[point] = torch.ones(2, 3, dtype=torch.bool)
    return Activations(states, masks, ("one", "two"))
