"""From a plain configuration to a prober, all faults reported together.

    {"kind": "fusion", "weights": "fitted", "readers": [
        {"kind": "mlp", "point": "4@prompt_end"},
        {"kind": "layer_average", "points": ["2@prompt_end", "4@prompt_end"], "inner": "linear"},
        {"kind": "window", "point": "4@window:16"},
        {"kind": "ngram"}]}

Knows nothing of states or labels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, Prober
from safeswitch.probers.fusion import WEIGHTS, FusionProber
from safeswitch.probers.learned import LearnedProber
from safeswitch.probers.multilayer import LayerAverageProber
from safeswitch.probers.settings import setting_faults

PLACES = ("point", "points", "blocks")
"""What a prober may be told about where to read, by the name of the constructor's argument: one
read point, several, or the numbers of blocks."""


def places_of(kind: str) -> tuple[str, ...]:
    """Those of ``PLACES`` that the constructor of a kind takes.

    Raises:
        SettingError: an unknown kind, one registered under another name than its own, or one whose
            constructor cannot do without something else.
    """
    member = PROBERS[kind]
    if member.kind != kind:  # what is saved names the kind, and could not be loaded again
        raise SettingError(
            f"prober {kind!r}: its class has the kind {member.kind!r}; register it as "
            f"@PROBERS.add({member.kind!r})"
        )
    needed, taken = _arguments_of(member)
    others = [name for name in needed if name not in PLACES]
    if others:
        raise SettingError(
            f"prober {kind!r} cannot be made by its name alone: its constructor needs "
            f"{', '.join(others)}; it may need no more than {', '.join(PLACES)}"
        )
    return tuple(name for name in PLACES if name in taken)


def _arguments_of(member: type[Prober]) -> tuple[list[str], list[str]]:
    """Arguments of a constructor: those that must be given, and all."""
    every = inspect.signature(member).parameters.values()
    named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in named if p.default is p.empty], [p.name for p in named]


def make_prober(spec: JsonMapping) -> Prober:
    """An unfitted prober from ``spec``; see the module text for an example.

    Raises:
        SettingError: with every fault of the whole tree, one a line.
    """
    faults: list[str] = []
    prober = _build(spec, "prober", faults)
    if faults or prober is None:
        raise SettingError("\n".join(faults))
    return prober


def _build(spec: object, where: str, faults: list[str]) -> Prober | None:
    """The prober of ``spec``, or None after adding to ``faults``."""
    if not isinstance(spec, Mapping):
        faults.append(f"{where}: must be a mapping with 'kind'; got {spec!r}")
        return None
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in PROBERS:
        faults.append(f"{where}: kind must be one of {', '.join(PROBERS)}; got {kind!r}")
        return None
    rest = {name: value for name, value in spec.items() if name != "kind"}
    if kind == FusionProber.kind:
        return _fusion(rest, where, faults)
    if kind == LayerAverageProber.kind:
        return _layer_average(rest, where, faults)
    member = PROBERS[kind]
    if not issubclass(member, LearnedProber):
        return _by_constructor(member, rest, where, faults)
    arguments = dict(rest)
    if member.TAKES_POINT:
        arguments["point"] = _point(rest.get("point"), f"{where}.point", faults)
    plain = {
        name: value
        for name, value in arguments.items()
        if name != "point" or not member.TAKES_POINT
    }
    own = setting_faults(where, plain, member.SETTINGS)
    faults.extend(own)
    if own or (member.TAKES_POINT and arguments["point"] is None):
        return None
    make: Any = member
    built: Prober = make(**arguments)
    return built


def _point(text: object, where: str, faults: list[str]) -> ReadPoint | None:
    """A read point from text."""
    if isinstance(text, ReadPoint):
        return text
    try:
        if not isinstance(text, str):
            raise SettingError(f"must be text such as '4@prompt_end'; got {text!r}")
        return ReadPoint.parse(text)
    except SafeSwitchError as error:
        faults.append(f"{where}: {error}")
        return None


def _unknown(rest: JsonMapping, known: tuple[str, ...], where: str, faults: list[str]) -> None:
    faults.extend(
        f"{where}: unknown setting {n!r}; known: {', '.join(known)}" for n in rest if n not in known
    )


def _by_constructor(
    member: type[Prober], rest: JsonMapping, where: str, faults: list[str]
) -> Prober | None:
    """A prober that states no limits of its settings: its constructor says what it takes."""
    before = len(faults)
    needed, taken = _arguments_of(member)
    _unknown(rest, tuple(taken), where, faults)
    arguments = dict(rest)
    if "point" in rest:
        arguments["point"] = _point(rest["point"], f"{where}.point", faults)
    if "points" in rest:
        arguments["points"] = _points(rest["points"], where, faults)
    faults.extend(f"{where}: {name} is missing" for name in needed if name not in rest)
    if len(faults) > before:
        return None
    make: Any = member
    built: Prober = make(**arguments)
    return built


def _points(texts: object, where: str, faults: list[str]) -> list[ReadPoint]:
    """One or more read points; those that cannot be read are left out, and are faults."""
    if not isinstance(texts, list | tuple) or not texts:
        faults.append(f"{where}.points: must be a list of one or more points; got {texts!r}")
        return []
    points = [_point(text, f"{where}.points[{i}]", faults) for i, text in enumerate(texts)]
    return [point for point in points if point is not None]


def _layer_average(rest: JsonMapping, where: str, faults: list[str]) -> Prober | None:
    before = len(faults)
    _unknown(rest, ("points", "inner", "settings"), where, faults)
    points = _points(rest.get("points"), where, faults)
    inner, settings = rest.get("inner", "mlp"), rest.get("settings", {})
    if not isinstance(settings, Mapping):
        faults.append(f"{where}.settings: must be a mapping; got {settings!r}")
    else:
        _build({**settings, "kind": inner, "point": ReadPoint(0)}, f"{where}.inner", faults)
    if len(faults) > before:
        return None
    prober = LayerAverageProber(points, inner, settings)
    try:
        prober.check_settings()
    except SettingError as error:
        faults.append(f"{where}: {error}")
    return prober


def _fusion(rest: JsonMapping, where: str, faults: list[str]) -> Prober | None:
    before = len(faults)
    _unknown(rest, ("readers", "weights"), where, faults)
    weights, specs = rest.get("weights", "equal"), rest.get("readers")
    if weights not in WEIGHTS:
        faults.append(
            f"{where}.weights: must be one of {', '.join(map(repr, WEIGHTS))}; got {weights!r}"
        )
    if not isinstance(specs, list | tuple) or not specs:
        faults.append(f"{where}.readers: must be a list of one or more probers; got {specs!r}")
        specs = []
    readers = [_build(spec, f"{where}.readers[{i}]", faults) for i, spec in enumerate(specs)]
    if len(faults) > before:
        return None
    return FusionProber([r for r in readers if r is not None], weights=weights)
