"""From a name on the command line to a method.

    scans                     a method under its own gate
    safeswitch+scans          the gate of the first, the action of the second
    cast+head                 any gate over the refusal head
    merge:tuned.safetensors   a method with a file, here of weight differences; steer:vector.gguf takes a steering vector

Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from safeswitch.core.deprecated import old_names
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import method_parts
from safeswitch.core.json_types import JsonMapping
from safeswitch.fitting.fit import does_not_refuse
from safeswitch.fitting.observe import Complied
from safeswitch.fitting.settings import FitSettings
from safeswitch.methods.base import METHODS, Data, Method, Tags, joined
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


def resolve(
    name: str,
    settings: FitSettings | None = None,
    complied: Complied = does_not_refuse,
    **options: Any,
) -> Method:
    """The method that ``name`` stands for.

    Args:
        name: See the module text.
        settings: Fitting settings.
        complied: Judge of replies to fitting requests.
        options: Further fields of the method (of both, where two are joined, if they have them).

    Raises:
        SettingError: an unknown method, a join that cannot be, or a file for a method that takes
            none.
    """
    parts = method_parts(name, METHODS)
    if len(parts) > 2:
        raise SettingError(
            f"method {name!r}: join at most a gate and an action, as in safeswitch+scans"
        )
    methods = [
        _single(kind, file, settings or FitSettings(), complied, options) for kind, file in parts
    ]
    if len(methods) == 1:
        return methods[0]
    first, second = methods
    if not first.tags.conditional or first.name == "base":
        raise SettingError(
            f"method {name!r}: {first.name} has no gate; it acts on every request or on none"
        )
    if second.tags.wraps:
        raise SettingError(
            f"method {name!r}: {second.name} is no action: it runs around generation; put it "
            "first, or alone"
        )
    return Joined(settings=first.settings, complied=first.complied, first=first, second=second)


def _single(
    kind: str,
    file: str | None,
    settings: FitSettings,
    complied: Complied,
    options: JsonMapping,
) -> Method:
    member = METHODS[kind]
    known = {f.name for f in fields(member)}
    if file is not None and "source" not in known:
        raise SettingError(f"method {f'{kind}:{file}'!r}: {kind} takes no file")
    known |= set(old_names(member).values())
    own = {key: value for key, value in options.items() if key in known}
    return member(settings, complied, **own, **({} if file is None else {"source": file}))


@dataclass(frozen=True)
class Joined(Method):
    """The gate of one method, the action of another.

    Args:
        first: Gives gate and ``wrap``.
        second: Gives the action, tuned under that gate.
    """

    first: Method = field(kw_only=True)
    second: Method = field(kw_only=True)

    @property
    def name(self) -> str:  # type: ignore[override]
        """As it is written."""
        return f"{self.first.name}+{self.second.name}"

    @property
    def tags(self) -> Tags:  # type: ignore[override]
        """What both leave."""
        one, two = self.first.tags, self.second.tags
        return Tags(
            engines=tuple(engine for engine in one.engines if engine in two.engines),
            trains=one.trains or two.trains,
            difference=two.difference,
            conditional=one.conditional,
            per_row=two.per_row,
            wraps=one.wraps,
        )

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """The first one's."""
        return self.first.gate(engine, data)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The second one's."""
        return self.second.action(engine, data, gate)

    def wrap(self, engine: ReadingEngine) -> ReadingEngine:
        """The first one's."""
        return self.first.wrap(engine)

    def prepare(self, engine: ReadingEngine, data: Data) -> Switch:
        """Both, with what the first one records."""
        gate = self.gate(engine, data)
        own = self.first.prepare(engine, data).record if self.first.tags.wraps else {}
        return joined(engine, gate, self.action(engine, data, gate), own)
