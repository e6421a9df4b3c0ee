"""Makes methods ready to run: fits them on the same data, keeps their switches in the run folder, finds them there again.

Knows methods by name only. Knows nothing of suites.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Example
from safeswitch.evaluation.log import RunLog
from safeswitch.evaluation.runner import Candidate, short_hash
from safeswitch.methods.base import Method
from safeswitch.methods.fitting import remember
from safeswitch.methods.resolve import resolve
from safeswitch.switch.fit import does_not_refuse
from safeswitch.switch.fit_data import Complied, Generating
from safeswitch.switch.fit_settings import FitSettings
from safeswitch.switch.switch import Switch

Parts = Mapping[str, Sequence[Example]]
OWN = "safeswitch"


@dataclass(frozen=True, eq=False)
class Fitting:
    """On what and how methods are fitted, the same for all.

    Args:
        data: Gives the parts ``train``, ``validation`` and ``calibration``, when something has to be fitted.
        settings: Fitting settings.
        complied: Judge of replies to fitting requests.
        options: Settings of single methods by name, over their defaults.
        own: A fitted SafeSwitch, taken instead of fitting one.
    """

    data: Callable[[], Parts]
    settings: FitSettings = field(default_factory=FitSettings)
    complied: Complied = does_not_refuse
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    own: Switch | None = None


def check_methods(names: Sequence[str]) -> None:
    """Refuse unknown and repeated names before any work.

    Raises:
        SettingError: a name that stands for no method (see :func:`safeswitch.methods.resolve.resolve`), or comes twice, or no
            name at all.
    """
    for name in names:
        resolve(name)
    if not names or len(set(names)) < len(names):
        raise SettingError(f"methods: name at least one, each once; got {', '.join(names) or 'none'}")


def prepare(
    engine: Generating, names: Sequence[str], fitting: Fitting, log: RunLog, say: Callable[[str], None] = lambda text: None
) -> dict[str, Candidate]:
    """Every method with its switch, from ``log`` where it is there already.

    Methods that use SafeSwitch's gate or head are handed the fitted one, so that all run the same parts.

    Raises:
        FitError, DataError, SettingError: see :meth:`Method.prepare`.
        ArtifactError: the run folder holds a damaged switch, or cannot be written.
    """
    ready = _Ready(engine, fitting, log, say)
    return {name: ready.candidate(name) for name in names}


def kept(log: RunLog, name: str, make: Callable[[], Switch]) -> tuple[Switch, bool]:
    """The switch of method ``name`` from the run folder, where an earlier run of the same identity left it; else made now
    and left there. Also whether it is new."""
    folder = log.switch_folder(name)
    if (folder / "config.json").is_file():
        return Switch.from_pretrained(folder), False
    switch = make()
    switch.save_pretrained(folder)
    return switch, True


class _Ready:
    def __init__(self, engine: Generating, fitting: Fitting, log: RunLog, say: Callable[[str], None]) -> None:
        self._engine, self._fitting, self._log, self._say = engine, fitting, log, say
        self._parts: Parts | None = None
        self._seconds: dict[str, float | None] = {}
        self._switches: dict[str, Switch] = {OWN: fitting.own} if fitting.own is not None else {}

    def candidate(self, name: str) -> Candidate:
        method = self._method(name)
        switch = self._switch(name, method)
        return Candidate(switch, method.wrap, {"options": _told(method)}, self._seconds.get(name))

    def _method(self, name: str) -> Method:
        given = [self._fitting.options.get(part.partition(":")[0], {}) for part in name.split("+")]
        options = {key: value for own in given for key, value in own.items()}
        return resolve(name, self._fitting.settings, self._fitting.complied, **options)

    def _switch(self, name: str, method: Method) -> Switch:
        if name not in self._switches:
            start = time.perf_counter()
            self._switches[name], new = kept(self._log, name, lambda: self._prepare(name, method))
            self._seconds[name] = time.perf_counter() - start if new else None
        elif not self._log.switch_folder(name).exists():
            self._switches[name].save_pretrained(self._log.switch_folder(name))
        return self._switches[name]

    def _prepare(self, name: str, method: Method) -> Switch:
        self._say(f"preparing {name}")
        own = self._switches.get(OWN)
        if own is None and name != OWN and (self._log.switch_folder(OWN) / "config.json").is_file():
            own = Switch.from_pretrained(self._log.switch_folder(OWN))
        if own is not None:
            remember(own, self._engine, self._data(), self._fitting.settings, self._fitting.complied)
        return method.prepare(self._engine, self._data())

    def _data(self) -> Parts:
        if self._parts is None:
            self._parts = self._fitting.data()
        return self._parts


def _told(method: Method) -> str:
    """Hash of a method's own settings; the fitted parts count through the switch."""
    own = {f.name: getattr(method, f.name) for f in fields(method) if f.name not in ("complied", "fitted")}
    return short_hash(repr({name: _told(value) if isinstance(value, Method) else value for name, value in own.items()}))
