"""Runs attacks as part of a bench run: attacked sets are made, then every method answers them like
any others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from safeswitch.attacks.base import ATTACKS, Attack, Victim
from safeswitch.attacks.sets import attack_set
from safeswitch.bench.bench import BenchSettings, Say, run_bench
from safeswitch.bench.benchmark import Loaded
from safeswitch.bench.candidates import Fitting, check_methods, prepare
from safeswitch.bench.log import RunLog
from safeswitch.bench.runner import Progress
from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.json_types import JsonMapping
from safeswitch.engines.answering import AnsweringEngine
from safeswitch.switch.engine import MeasuredEngine


def build_attacks(
    names: Sequence[str], options: Mapping[str, JsonMapping] | None = None
) -> list[Attack]:
    """Attacks by name, with settings of single attacks in place of their defaults.

    Raises:
        SettingError: an unknown attack, or a setting outside its limits.
    """
    return [ATTACKS[name](**(options or {}).get(name, {})) for name in names]


def run_attacks(
    engine: MeasuredEngine,
    settings: BenchSettings,
    methods: Sequence[str],
    fitting: Fitting,
    attacks: Sequence[Attack],
    out: Path,
    *,
    say: Say = lambda text: None,
    progress: Progress = lambda method, benchmark, done: None,
    after: Sequence[Callable[[Path], None]] = (),
    on_start: Callable[[Path], None] = lambda folder: None,
) -> RunLog:
    """The benchmarks bare and under each attack; resumable, searches included.

    White-box attacks look into the model and the gate of ``fitting.own``: the one that is defended
    with. ``after`` is made at the end, each from the run folder alone.

    Raises:
        SettingError: an unknown method, or a white-box attack on an engine that shows nothing.
        DataError: no benchmark with unsafe requests.
        ArtifactError: see :func:`safeswitch.bench.bench.run_bench`.
    """
    check_methods(methods)
    _check_sight(engine, attacks)
    own = fitting.own
    victim = Victim(engine, own.gate if own is not None else None)
    identity = {
        "model": engine.facts.fingerprint,
        "switch": own.fingerprint if own is not None else "none",
    }

    def attacked(loaded: Sequence[Loaded]) -> list[Loaded]:
        """Every benchmark that has unsafe requests, under every attack."""
        made: list[Loaded] = []
        for one in _with_unsafe(loaded):
            for attack in attacks:
                say(f"making {one.benchmark.name}.{attack.name}")
                count = partial(progress, attack.name, one.benchmark.name)
                made.append(
                    attack_set(one, attack, victim, out, identity=identity, progress=count, say=say)
                )
        return made

    return run_bench(
        engine,
        settings,
        lambda log: prepare(engine, methods, fitting, log, say),
        out,
        say=say,
        progress=progress,
        more=attacked,
        after=after,
        on_start=on_start,
    )


def _with_unsafe(loaded: Sequence[Loaded]) -> list[Loaded]:
    """The benchmarks that have unsafe requests.

    Raises:
        DataError: none has.
    """
    found: list[Loaded] = []
    for one in loaded:
        if any(example.label == "unsafe" for example in one.examples):
            found.append(one)
    if not found:
        raise DataError("attack: none of the benchmarks has an unsafe request")
    return found


def _check_sight(engine: MeasuredEngine, attacks: Sequence[Attack]) -> None:
    """Refuse attacks that look into a model where none is shown.

    Raises:
        SettingError: which.
    """
    blind = isinstance(engine, AnsweringEngine)
    searching = [attack.name for attack in attacks if attack.white_box and blind]
    if searching:
        raise SettingError(
            f"attacks {', '.join(searching)}: they search with the model's weights, which "
            f"{engine.facts.runs_in} does not show; use --engine transformers with --model"
        )
