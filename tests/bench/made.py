"""Small runs for the bench's tests: made benchmarks, a scripted engine, and run folders from
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeswitch.bench.benchmark import Benchmark, Loaded
from safeswitch.bench.judges.base import make_judge
from safeswitch.bench.judges.rules import RulesJudge  # noqa: F401  (registers it)
from safeswitch.bench.log import Logged, RunLog
from safeswitch.bench.runner import Candidate, run_method
from safeswitch.bench.verdict import Verdict
from safeswitch.core.types import Example, Message, Reply
from safeswitch.engines.mock import MockEngine
from safeswitch.switch.actuators.base import NoAction, SystemPrompt
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch

CARD = "Made.\n\nSource: s\nLicence: l\nRevision: r\nRows: 4\nLabel: x\nNoise: none\n"
SWITCHES = {
    "base": Switch(Gate(), NoAction()),
    "prompt": Switch(Gate(always=True), SystemPrompt("Careful.")),
}


class Scripted(MockEngine):
    """The mock, whose gate never fires where the switch does nothing."""

    def generate(
        self, prompts: Sequence[Any], switch: Switch | None = None, **options: Any
    ) -> list[Reply]:
        inert = switch is not None and isinstance(switch.actuator, NoAction)
        return super().generate(prompts, None if inert else switch, **options)


def odd(text: str) -> bool:
    return int(text.split()[-1]) % 2 == 1


def asked(name: str, n: int, label: str = "unsafe", **more: Any) -> list[Example]:
    """n requests ``<name> <i>``."""
    return [
        Example(f"{name}{i}", (Message("user", f"{name} {i}"),), label, **more) for i in range(n)
    ]  # type: ignore[arg-type]


def logged(example: Example, reply: str, **verdicts: Verdict) -> Logged:
    """A row of a log."""
    return Logged(example, "r", reply, None, "stop", 1, 1, {}, 0.0, 1.0, 1.0, None, verdicts)


def loaded(name: str, examples: Sequence[Example], **settings: Any) -> Loaded:
    return Loaded(Benchmark(name, CARD, **settings), tuple(examples), len(examples), "made")


def manifest(benchmarks: Sequence[Loaded], **more: Any) -> dict[str, Any]:
    told = {
        one.benchmark.name: {
            "measures": one.benchmark.measures,
            "title": "t",
            "card": {"Licence": "l"},
            "origin": "made",
            "file_hash": None,
            "data_hash": "h",
            "n": len(one.examples),
            "of": one.of,
            "max_new_tokens": 5,
            "judges": list(one.benchmark.judges),
        }
        for one in benchmarks
    }
    return {
        "identity": {"model": "m"},
        "model": {"fingerprint": "m", "device": "cpu"},
        "benchmarks": told,
        "missing": {},
        "methods": {},
        "judges": {},
        **more,
    }


def run(
    folder: Path,
    benchmarks: Sequence[Loaded],
    engine: MockEngine,
    switches: Mapping[str, Switch] = SWITCHES,
    **more: Any,
) -> RunLog:
    """A run folder of every switch on every benchmark."""
    log = RunLog.start(folder, manifest(benchmarks, **more))
    judges = {name: make_judge(name) for one in benchmarks for name in one.benchmark.judges}
    for name, switch in switches.items():
        run_method(engine, name, Candidate(switch), benchmarks, judges, log)
    return log
