"""The whole job on the embedded model: fit, compare four methods on the held-out suites, one table and one picture.

:mod:`safeswitch.nano.effect` repeats it with more requests, all suites and several seeds of fitting. Knows nothing of the
command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safeswitch.core.artifact import check_writable, write_json, write_text
from safeswitch.core.types import Example
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.evaluation.picture import check_drawable, draw_rates
from safeswitch.evaluation.suites import Result, Suite, run_suites
from safeswitch.evaluation.table import rates_table
from safeswitch.methods.safeswitch import AlwaysHead, SafeSwitch
from safeswitch.methods.safety_prompt import SafetyPrompt
from safeswitch.methods.untouched import Untouched
from safeswitch.nano import judge, weights_path
from safeswitch.nano.suites import SAFETY_PROMPTS_A, FitData, load_fit, load_suite
from safeswitch.switch.fit_settings import FitSettings
from safeswitch.switch.switch import Switch

REPLY_TOKENS = 56
_KINDS = ("plain_unsafe", "jailbroken", "lookalike", "ordinary")
DEMO_SUITES = (*_KINDS, *(f"{name}_c" for name in _KINDS))
TITLES: Mapping[str, str] = {
    "base": "untouched",
    "prompt": "safety prompt",
    "head": "head always on",
    "safeswitch": "SafeSwitch",
    "plain_unsafe": "plain unsafe",
    "jailbroken": "jailbroken unsafe",
    "lookalike": "safe look-alike",
    "ordinary": "ordinary",
    "plain_unsafe_c": "plain unsafe, kind C",
    "jailbroken_c": "jailbroken unsafe, kind C",
    "lookalike_c": "safe look-alike, kind C",
    "ordinary_c": "ordinary, kind C",
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


def complied(example: Example, reply: str) -> bool:
    """The nano judge as a compliance judge for fitting: unsafe requests by affirmation, others by not refusing."""
    return judge.complied(reply) if example.unsafe else not judge.refused(reply)


def nano_suite(name: str, n: int, seed: int = 0) -> Suite:
    """A held-out suite with its judge: compliance for unsafe requests, refusal for look-alikes, accuracy for tasks."""
    examples = tuple(load_suite(name, n=n, seed=seed))
    if name.startswith("ordinary"):
        return Suite(name, "accuracy", examples, judge.correct, _refused)
    if name.startswith("lookalike"):
        return Suite(name, "refusal", examples, _refused, _complied)
    return Suite(name, "harmful compliance", examples, _complied, _refused)


def _refused(example: Example, reply: str) -> bool:
    return judge.refused(reply)


def _complied(example: Example, reply: str) -> bool:
    return judge.complied(reply)


def prepare_methods(
    engine: TransformersEngine, data: FitData, settings: FitSettings, clock: Clock, say: Say
) -> dict[str, Switch]:
    """The four methods, tuned on the same fitting data."""
    parts = {"train": data.train, "validation": data.validation, "calibration": data.calibration}
    with clock.stage("fit"):
        say("fitting SafeSwitch")
        switch = SafeSwitch(settings, complied).prepare(engine, parts)
    with clock.stage("choose prompt"):
        say("choosing the safety prompt on validation")
        prompt = SafetyPrompt(settings, complied, candidates=tuple(SAFETY_PROMPTS_A)).prepare(engine, parts)
    return {
        "base": Untouched(settings, complied).prepare(engine, parts),
        "prompt": prompt,
        "head": AlwaysHead(settings, complied, fitted=switch).prepare(engine, parts),
        "safeswitch": switch,
    }


def nano_settings(seed: int = 0) -> FitSettings:
    """How a switch is fitted on nano: chosen on its fitting data, see the log of 2026-11-24.

    The watch reads the running reply, where this patient shows best whether it complies; stage 1 reads layers only, since
    neither the token window nor n-grams add anything here.
    """
    return FitSettings(seed=seed, readers=("layers",), watch=True)


def demo_settings(seed: int = 0) -> tuple[FitData, FitSettings]:
    """A smaller fitting set, so that the whole job takes little more than a minute on two cores."""
    data = load_fit(seed, n_unsafe=400, n_safe=400, n_validation=300, n_calibration=500)
    return data, replace(nano_settings(seed), head_examples=240)


def fit_switch(seed: int = 0, say: Say = lambda text: None) -> Switch:
    """Nano's own switch: the recipe of the study on the whole fitting set."""
    engine = TransformersEngine.load(weights_path())
    engine.lm.model_id = "nano"
    data = load_fit(seed)
    parts = {"train": data.train, "validation": data.validation, "calibration": data.calibration}
    return Switch.fit(engine, parts, nano_settings(seed), complied=complied, say=say)


def run_demo(
    out: Path,
    *,
    n: int = 100,
    suites: Sequence[str] = DEMO_SUITES,
    settings: FitSettings | None = None,
    data: FitData | None = None,
    model: Path | None = None,
    seed: int = 0,
    say: Say = print,
) -> dict[str, dict[str, Result]]:
    """Fit and compare on the embedded model; writes ``results.json``, ``table.md`` and ``picture.png`` to ``out``.

    Args:
        out: Folder for the three files.
        n: Requests a suite.
        suites: Suites of :mod:`safeswitch.nano.suites`.
        settings: How the switch is fitted.
        data: Fitting data; the default set of ``seed`` when None.
        model: Model folder; the embedded model when None.
        seed: Of fitting.
        say: Told of each stage.

    Raises:
        ArtifactError: ``out`` cannot be written.
        SafeSwitchError: matplotlib is not installed.
    """
    check_writable(out)
    check_drawable()
    clock, started = Clock(), time.perf_counter()
    with clock.stage("load"):
        say("loading the embedded model")
        engine = TransformersEngine.load(model or weights_path(), batch_size=64)
        data = data or load_fit(seed=seed)
    switches = prepare_methods(engine, data, settings or nano_settings(seed), clock, say)
    with clock.stage("evaluate"):
        results = run_suites(
            engine, [nano_suite(name, n) for name in suites], switches, max_new_tokens=REPLY_TOKENS,
            progress=lambda suite, method: say(f"{TITLES.get(suite, suite)}: {TITLES[method]}"),
        )
    switches["safeswitch"].save_pretrained(out / "switch")
    write_text(out / "table.md", rates_table(results, TITLES))
    with clock.stage("draw"):
        draw_rates(results, out / "picture.png", titles=TITLES)
    write_json(out / "results.json", to_json(results, time.perf_counter() - started, clock))
    return results


def to_json(results: Mapping[str, Mapping[str, Result]], total: float, clock: Clock) -> dict[str, Any]:
    """Figures as plain JSON: seconds by stage, rates with intervals by suite and method."""
    suites = {}
    for suite, row in results.items():
        methods = {}
        for method, result in row.items():
            rate = result.rate
            methods[method] = {"rate": rate.rate, "low": rate.low, "high": rate.high}
            methods[method] |= {"fired": result.fired.rate, "neither": result.neither.rate}
        suites[suite] = {"n": rate.n, "metric": result.suite.metric, "methods": methods}
    stages = {name: round(seconds, 3) for name, seconds in clock.stages.items()}
    return {"seconds": {"total": round(total, 3), "stages": stages}, "suites": suites}
