"""Makes methods ready to run: fits them on the same data (on files, as ``safeswitch fit`` does),
keeps their switches in the run folder, finds them there again.

Knows methods by name only. Knows nothing of suites.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

from safeswitch.bench.judges.base import Judge
from safeswitch.bench.log import LATER_SETTINGS, RENAMED_SETTINGS, RunLog, plain
from safeswitch.bench.runner import Candidate, short_hash
from safeswitch.core.deprecated import old_names
from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.grammar import method_parts
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.types import Example
from safeswitch.data.splits import fit_split
from safeswitch.fitting.files import Say, fitting_requests, read_sources
from safeswitch.fitting.fit import does_not_refuse
from safeswitch.fitting.left_out import left_out_report
from safeswitch.fitting.observe import Complied
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.methods.base import METHODS, Method
from safeswitch.methods.fitting import share_switch
from safeswitch.methods.resolve import Joined, resolve
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.capability import vllm_refusal
from safeswitch.switch.engine import MeasuredEngine, ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch

Parts = Mapping[str, Sequence[Example]]
OWN = "safeswitch"
URL = "url"
"""What a server's model is called among methods."""
_OF_SWITCH = (OWN, "head")
"""Methods that are ready once a fitted SafeSwitch is given."""


@dataclass(frozen=True, eq=False)
class Fitting:
    """On what and how methods are fitted, the same for all.

    Args:
        data: Gives the parts ``train``, ``validation`` and ``calibration``, when something has to
            be fitted.
        settings: Fitting settings.
        complied: Judge of replies to fitting requests.
        options: Settings of single methods by name, over their defaults.
        own: A fitted SafeSwitch, taken instead of fitting one.
        left_out: Gives the figures on sources and jailbreak templates left out, for the record of a
            SafeSwitch that is fitted here; None leaves them out of it.
    """

    data: Callable[[], Parts]
    settings: FitSettings = field(default_factory=FitSettings)
    complied: Complied = does_not_refuse
    options: Mapping[str, JsonMapping] = field(default_factory=dict)
    own: Switch | None = None
    left_out: Callable[[], JsonMapping] | None = None


def fitting_on(
    engine: ReadingEngine,
    sources: Sequence[str],
    settings: FitSettings,
    own: Switch | None,
    say: Say,
    *,
    leave_out: bool,
) -> tuple[Fitting, JsonObject]:
    """How methods are fitted on ``sources``, and the same for a run's identity.

    With ``leave_out`` the record of a SafeSwitch that is fitted here says how stage 1 does on
    sources and jailbreak templates left out. Without sources nothing can be fitted; methods that
    need no fitting, and a given switch, run all the same.
    """

    @cache
    def requests() -> list[Example]:
        if not sources:
            raise FitError(
                "this method has to be fitted, and there is nothing to fit it on; give --fit-data"
            )
        return fitting_requests(
            engine, read_sources(sources, label=None, limit=None), settings, say
        )

    def data() -> Parts:
        return fit_split(requests(), settings.seed)

    def left_out() -> JsonMapping:
        return left_out_report(engine, requests(), settings)

    record = {
        "sources": {source: _digest(source) for source in sources},
        "settings": settings.to_dict(),
        "switch": own.fingerprint if own is not None else None,
    }
    return Fitting(data, settings, own=own, left_out=left_out if leave_out else None), record


def _digest(source: str) -> str | None:
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def check_methods(names: Sequence[str], judges: Sequence[Judge] = ()) -> None:
    """Refuse names that stand for no method and repeated ones before any work; see
    :mod:`safeswitch.methods.resolve`.

    Raises:
        SettingError: a name that is not in the table, or comes twice, or no name at all, or a judge
            that compares with a method that is not among them.
    """
    for name in names:
        resolve(name)
    if not names or len(set(names)) < len(names):
        raise SettingError(
            f"methods: name at least one, each once; got {', '.join(names) or 'none'}"
        )
    folders = [plain(name) for name in names]
    if len(set(folders)) < len(folders):
        raise SettingError(
            f"methods: two of {', '.join(names)} would share a folder of the run; rename the file "
            "of one"
        )
    kinds = [judge.name for judge in judges]
    if len(set(kinds)) < len(kinds):
        raise SettingError(
            f"judges: {', '.join(kinds)}: each kind once, since verdicts stand under its name; "
            "make two runs"
        )
    for judge in judges:
        if judge.against and judge.against not in names:
            raise SettingError(
                f"judge {judge.name} compares with {judge.against}; add it to the methods "
                f"{', '.join(names)}"
            )


def check_engine(names: Sequence[str], runs_in: str, own: Switch | None) -> None:
    """Refuse, before anything is loaded, methods that a back end cannot run.

    Args:
        names: Methods that :func:`check_methods` takes.
        runs_in: ``transformers``, ``vllm`` or ``server``.
        own: A fitted SafeSwitch that was given.

    Raises:
        SettingError: a method that the back end cannot run, or that must be fitted where nothing
            can be.
    """
    if runs_in == "transformers":
        return
    if own is not None and runs_in == "server":
        raise SettingError(
            "--switch: a server runs its own guard or none; serve the switch there "
            "(safeswitch serve), and leave --switch out"
        )
    for name in names:
        _check_runs(name, runs_in, own)
    if own is not None and (refusal := vllm_refusal(own)) is not None:
        raise SettingError(f"--engine vllm cannot run the switch: {refusal}")


def _check_runs(name: str, runs_in: str, own: Switch | None) -> None:
    """:func:`check_engine` for one method."""
    if runs_in == "server":
        if name != "base":
            raise SettingError(
                f"method {name!r} needs the model's hidden states or weights, which a server does "
                "not show; with --url alone only base runs"
            )
        return
    if runs_in not in resolve(name).tags.engines:
        raise SettingError(f"method {name!r} does not run in vLLM; use --engine transformers")
    check_ready([name], own)


def check_ready(names: Sequence[str], own: Switch | None) -> None:
    """Refuse methods that would have to be fitted.

    Args:
        names: Methods that :func:`check_methods` takes.
        own: A fitted SafeSwitch that was given.

    Raises:
        SettingError: which, and what to do.
    """
    for name in names:
        if name == "base" or (name in _OF_SWITCH and own is not None):
            continue
        ready = "give its switch with --switch" if name in _OF_SWITCH else "leave it out"
        raise SettingError(
            f"method {name!r} has to be fitted, which is done neither in vLLM nor in a part of a "
            f"run; {ready}, or use --engine transformers without --shard"
        )


def prepare(
    engine: ReadingEngine,
    names: Sequence[str],
    fitting: Fitting,
    log: RunLog,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Candidate]:
    """Every method with its switch, from ``log`` where it is there already.

    A method with the field ``fitted`` is handed the fitted SafeSwitch, so that both run the same
    parts.

    Raises:
        FitError, DataError, SettingError: see :meth:`Method.prepare`.
        ArtifactError: the run folder holds a damaged switch, or cannot be written.
    """
    ready = _Ready(engine, fitting, log, say)
    return {name: ready.candidate(name) for name in names}


def beside(
    ready: Callable[[RunLog], Mapping[str, Candidate]], server: MeasuredEngine
) -> Callable[[RunLog], dict[str, Candidate]]:
    """The methods, and a server's model as one more, called ``url``."""

    def candidates(log: RunLog) -> dict[str, Candidate]:
        facts = server.facts
        who = {"model": facts.model_id, "address": facts.runs_in}
        idle = Switch(Gate(), NoAction())
        switch, _ = kept(log, URL, lambda: idle)
        return {**ready(log), URL: Candidate(switch, settings=who, engine=server)}

    return candidates


def kept(log: RunLog, name: str, make: Callable[[], Switch]) -> tuple[Switch, bool]:
    """The switch of method ``name`` from the run folder, where an earlier run of the same identity
    left it; else made now and left there. Also whether it is new."""
    folder = log.switch_folder(name)
    if (folder / "config.json").is_file():
        return Switch.from_pretrained(folder), False
    switch = make()
    switch.save_pretrained(folder)
    return switch, True


class _Ready:
    def __init__(
        self, engine: ReadingEngine, fitting: Fitting, log: RunLog, say: Callable[[str], None]
    ) -> None:
        self._engine, self._fitting, self._log, self._say = engine, fitting, log, say
        self._parts = _Lazy(fitting.data)
        self._seconds: dict[str, float | None] = {}
        self._switches: dict[str, Switch] = {OWN: fitting.own} if fitting.own is not None else {}

    def candidate(self, name: str) -> Candidate:
        method = self._method(name)
        switch = self._switch(name, method)
        return Candidate(
            switch, method.wrap, {"options": _settings_hash(method)}, self._seconds.get(name)
        )

    def _method(self, name: str) -> Method:
        kinds = _kinds(name)
        options: JsonObject = {}
        for kind in kinds:
            options |= self._fitting.options.get(kind, {})
        if any(f.name == "fitted" for kind in kinds for f in fields(METHODS[kind])):
            options["fitted"] = self._own()
        return resolve(name, self._fitting.settings, self._fitting.complied, **options)

    def _own(self) -> Switch:
        return self._switch(OWN, METHODS[OWN](self._fitting.settings, self._fitting.complied))

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
        if OWN in _kinds(name) and name != OWN:
            share_switch(
                self._engine,
                self._parts,
                self._fitting.settings,
                self._fitting.complied,
                self._own(),
            )
        switch = method.prepare(self._engine, self._parts)
        if name != OWN or self._fitting.left_out is None:
            return switch
        self._say("stage 1: leaving out one source and one jailbreak template at a time")
        return replace(switch, record={**switch.record, "left_out": self._fitting.left_out()})


def _kinds(name: str) -> list[str]:
    return [kind for kind, _ in method_parts(name, METHODS)]


class _Lazy(Mapping[str, Sequence[Example]]):
    """Parts that are read when a method looks at them first; a method that needs no fitting runs
    without any."""

    def __init__(self, read: Callable[[], Parts]) -> None:
        self._read = cache(read)

    def __getitem__(self, name: str) -> Sequence[Example]:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


def _settings_hash(method: Method) -> str:
    """Hash of a method's own settings; the fitted parts count through the switch."""
    if isinstance(method, Joined):
        return short_hash(_settings_hash(method.first) + _settings_hash(method.second))
    first_names = old_names(type(method))
    own: JsonObject = {}
    for field_ in fields(method):
        if field_.name not in ("complied", "fitted"):
            own[first_names.get(field_.name, field_.name)] = getattr(method, field_.name)
    return short_hash(_settings_text(own))


def _settings_text(value: object) -> str:
    """``repr`` of settings as versions before the last fields and names came would write it, so
    that a run folder of theirs is resumed."""
    if isinstance(value, Mapping):
        entries = [f"{name!r}: {_settings_text(entry)}" for name, entry in value.items()]
        return f"{{{', '.join(entries)}}}"
    if not isinstance(value, FitSettings | HeadSettings):
        return repr(value)
    first_names = {new: old for old, new in RENAMED_SETTINGS.items()}
    parts: list[str] = []
    for field_ in fields(value):
        setting = getattr(value, field_.name)
        if field_.name not in LATER_SETTINGS or setting != LATER_SETTINGS[field_.name]:
            name = first_names.get(field_.name, field_.name)
            parts.append(f"{name}={_settings_text(setting)}")
    return f"{type(value).__name__}({', '.join(parts)})"
