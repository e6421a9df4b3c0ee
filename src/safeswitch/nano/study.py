"""The whole job on the embedded model: fit, compare four methods on the held-out suites, one table
and one picture.

:mod:`safeswitch.nano.effect` repeats it with more requests, all suites and several seeds of
fitting. Knows nothing of the command line.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from safeswitch.bench.bench import BenchSettings, run_bench
from safeswitch.bench.candidates import prepare
from safeswitch.bench.estimates import Table
from safeswitch.bench.gate_tables import gate_table
from safeswitch.bench.log import MANIFEST, LoggedRows, RunLog
from safeswitch.bench.picture import check_drawable, draw_rates
from safeswitch.bench.runner import Candidate
from safeswitch.bench.table import rates_table
from safeswitch.bench.tables import main_rates, rates
from safeswitch.core.artifact import check_writable, write_json, write_text
from safeswitch.core.json_types import JsonObject
from safeswitch.core.lock import folder_writer
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.settings import FitSettings
from safeswitch.nano import weights_path
from safeswitch.nano.bench import (
    COMPARE_SUITES,
    PREFIX,
    complied,
    nano_fitting,
    nano_settings,
    parts,
)
from safeswitch.nano.suites import FitData, load_fit
from safeswitch.switch.switch import Switch

METHODS = ("base", "prompt", "head", "safeswitch")
_SUITE_TITLES: Mapping[str, str] = {
    "plain_unsafe": "plain unsafe",
    "jailbroken": "jailbroken unsafe",
    "lookalike": "safe look-alike",
    "ordinary": "ordinary",
    "plain_unsafe_c": "plain unsafe, kind C",
    "jailbroken_c": "jailbroken unsafe, kind C",
    "lookalike_c": "safe look-alike, kind C",
    "ordinary_c": "ordinary, kind C",
}
TITLES: Mapping[str, str] = {
    "base": "untouched",
    "prompt": "safety prompt",
    "head": "head always on",
    "safeswitch": "SafeSwitch",
    **{PREFIX + name: title for name, title in _SUITE_TITLES.items()},
}
Say = Callable[[str], None]


@dataclass
class Clock:
    """Wall seconds by stage."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - start


def demo_settings(seed: int = 0) -> tuple[FitData, FitSettings]:
    """A smaller fitting set, so that the whole job takes little more than a minute on two cores."""
    data = load_fit(seed, n_unsafe=400, n_safe=400, n_validation=300, n_calibration=500)
    return data, replace(nano_settings(seed), head_examples=240)


def fit_switch(seed: int = 0, say: Say = lambda text: None) -> Switch:
    """Nano's own switch: the recipe of the study on the whole fitting set."""
    engine = TransformersEngine.load(weights_path())
    engine.lm.model_id = "nano"
    return Switch.fit(
        engine, parts(load_fit(seed)), nano_settings(seed), complied=complied, say=say
    )


def run_demo(
    out: Path,
    *,
    n: int = 100,
    suites: Sequence[str] = COMPARE_SUITES,
    settings: FitSettings | None = None,
    data: FitData | None = None,
    model: Path | None = None,
    seed: int = 0,
    say: Say = print,
) -> Table:
    """Fit and compare on the embedded model; writes ``results.json``, ``table.md``,
    ``picture.png``, ``switch`` and the run folder ``run`` to ``out``, anew each time. Returns the
    rates.

    Args:
        out: Folder for all that.
        n: Requests a suite.
        suites: Suites of :mod:`safeswitch.nano.suites`.
        settings: How the switch is fitted.
        data: Fitting data; the default set of ``seed`` when None.
        model: Model folder; the embedded model when None.
        seed: Of fitting.
        say: Told of each stage.

    Raises:
        ArtifactError: ``out`` cannot be written, or is being written by another process.
        SafeSwitchError: matplotlib is not installed.
    """
    check_writable(out)
    check_drawable()
    with folder_writer(out):
        return _demo(out, n, suites, settings or nano_settings(seed), data, model, say)


def _demo(
    out: Path,
    n: int,
    suites: Sequence[str],
    settings: FitSettings,
    data: FitData | None,
    model: Path | None,
    say: Say,
) -> Table:
    """:func:`run_demo` in a folder that is ours."""
    if (out / "run" / MANIFEST).is_file():
        with folder_writer(out / "run"):
            shutil.rmtree(out / "run")
    clock, started = Clock(), time.perf_counter()
    with clock.stage("load"):
        say("loading the embedded model")
        engine = TransformersEngine.load(model or weights_path(), batch_size=64)
    fitting, identity = nano_fitting(settings, (lambda: data) if data is not None else None)

    def candidates(log: RunLog) -> dict[str, Candidate]:
        with clock.stage("fit"):
            return prepare(engine, METHODS, fitting, log, say)

    asked = BenchSettings("demo", tuple(PREFIX + name for name in suites), limit=n, fit=identity)
    with clock.stage("evaluate"):
        log = run_bench(engine, asked, candidates, out / "run", say=say, after=())
    clock.stages["evaluate"] -= clock.stages["fit"]
    Switch.from_pretrained(log.switch_folder("safeswitch")).save_pretrained(out / "switch")
    rows = LoggedRows(log)
    table = main_rates(rows)
    write_text(out / "table.md", rates_table(table, METHODS, TITLES))
    with clock.stage("draw"):
        draw_rates(table, out / "picture.png", titles=TITLES)
    write_json(out / "results.json", to_json(rows, time.perf_counter() - started, clock))
    return table


def to_json(rows: LoggedRows, total: float, clock: Clock) -> JsonObject:
    """Figures as plain JSON: seconds by stage, rates with intervals by suite and method."""
    other = {
        (r["benchmark"], r["method"]): r["value"]
        for r in rates(rows)
        if (r["metric"], r["judge"]) == ("neither", "nano")
    }
    fired = {(r["benchmark"], r["method"]): r["value"] for r in gate_table(rows)}
    suites: JsonObject = {}
    for row in main_rates(rows):
        place = row["benchmark"], row["method"]
        entry = {"n": row["n"], "metric": row["metric"], "methods": {}}
        suites.setdefault(row["benchmark"].removeprefix(PREFIX), entry)["methods"][
            row["method"]
        ] = {
            "rate": row["value"],
            "low": row["low"],
            "high": row["high"],
            "fired": fired[place],
            "neither": other[place],
        }
    stages = {name: round(seconds, 3) for name, seconds in clock.stages.items()}
    return {"seconds": {"total": round(total, 3), "stages": stages}, "suites": suites}
