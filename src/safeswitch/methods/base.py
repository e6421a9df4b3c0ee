"""The contract of a method and the table of methods. Knows nothing of engines or reports.

A method is a name, tags that say what it can do, and three steps: ``gate`` (when to act; by default
always), ``action`` (what to do) and ``wrap`` (what goes around generation; by default nothing).
``prepare`` puts the first two together to a :class:`Switch`. Since they are apart, the gate of one
method and the action of another make a third: ``safeswitch+scans``
(:mod:`safeswitch.methods.resolve`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from safeswitch.core.json_types import JsonMapping
from safeswitch.core.registry import Registry
from safeswitch.core.types import Example
from safeswitch.fitting.fit import does_not_refuse
from safeswitch.fitting.observe import Complied
from safeswitch.fitting.settings import FitSettings
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.capability import EngineName
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import BaseModel, Switch

Data = Mapping[str, Sequence[Example]]
"""Requests by part: ``train``, ``validation``, ``calibration``."""

METHODS: Registry[type[Method]] = Registry("method", "safeswitch.methods", "safeswitch.methods")


@dataclass(frozen=True)
class Tags:
    """What a method is capable of; a test holds every method to it.

    Args:
        engines: Those that run its switch (vLLM: with readers that vLLM has, that is no token
            windows).
        trains: Whether its switch holds tensors of one model, so that it is bound to that model.
        difference: Whether the user must supply tensors: differences of weights, or vectors.
        conditional: Whether it leaves requests alone that its gate does not flag.
        per_row: Whether requests of one batch may each have a strength of their own.
        wraps: Whether it runs around generation, so that ``wrap`` must be used.
    """

    engines: tuple[EngineName, ...] = ("transformers",)
    trains: bool = False
    difference: bool = False
    conditional: bool = False
    per_row: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Method(ABC):
    """One defence.

    Args:
        settings: Fitting settings, shared so that methods are compared on equal terms.
        complied: Judge of replies to fitting requests.
    """

    settings: FitSettings = field(default_factory=FitSettings)
    complied: Complied = does_not_refuse
    name: ClassVar[str]
    tags: ClassVar[Tags]

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """When to act: on every request, unless a method says otherwise."""
        return Gate(always=True)

    @abstractmethod
    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """What to do under ``gate``, the method's own or another's."""

    def prepare(self, engine: ReadingEngine, data: Data) -> Switch:
        """Fit on ``data`` (parts ``train``, ``validation``, ``calibration``) and give the
        switch."""
        gate = self.gate(engine, data)
        return joined(engine, gate, self.action(engine, data, gate))

    def wrap(self, engine: ReadingEngine) -> ReadingEngine:
        """What the method does around generation (search, self-check): an engine in, an engine out;
        by default the same."""
        return engine


def joined(
    engine: ReadingEngine, gate: Gate, actuator: Actuator, record: JsonMapping | None = None
) -> Switch:
    """A switch, bound to the engine's model where anything in it was learned there."""
    learned = bool(gate.thresholds()) or bool(actuator.state()[1])
    return Switch(gate, actuator, BaseModel.of(engine.lm) if learned else None, record or {})
