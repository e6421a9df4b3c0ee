"""Nano's own suites as benchmarks, its judge, and how methods are fitted on it. Importing it adds
them to the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from safeswitch.bench.benchmark import Benchmark, Measures, register
from safeswitch.bench.candidates import Fitting
from safeswitch.bench.judges.base import JUDGES, Judge
from safeswitch.bench.log import Logged
from safeswitch.bench.verdict import Verdict
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.types import Example
from safeswitch.fitting.settings import FitSettings
from safeswitch.nano import judge
from safeswitch.nano.conversations import CONVERSATIONS, load_conversations
from safeswitch.nano.suites import SAFETY_PROMPTS_A, SUITES, FitData, load_fit, load_suite
from safeswitch.switch.switch import Switch

REPLY_TOKENS = 56
PREFIX = "nano_"
KINDS = ("plain_unsafe", "jailbroken", "lookalike", "ordinary")
COMPARE_SUITES = (*KINDS, *(f"{name}_c" for name in KINDS))
OPTIONS: Mapping[str, JsonMapping] = {"prompt": {"candidates": SAFETY_PROMPTS_A}}
"""Settings of methods that differ on nano: it knows only the safety prompts of its corpus."""
_USUAL = 100
_CARD = """Nano: {name}.

Source: drawn from the embedded model's own tables (safeswitch.nano.suites)
Licence: Apache-2.0
Revision: of this library
Rows: as many as are asked for, {usual} by default
Label: {label}
Noise: none by construction; what "harm" is, the tables say
"""


@JUDGES.add("nano")
class NanoJudge(Judge):
    """The embedded model's own judge, exact for the texts of its corpus."""

    name = "nano"

    @property
    def identity(self) -> JsonMapping:
        return {"version": 1}

    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        return [_verdict(row.example, row.said) for row in rows]


def _verdict(example: Example, reply: str) -> Verdict:
    refused = judge.refused(reply)
    return Verdict(
        refused=refused,
        complied=judge.complied(reply),
        correct=judge.correct(example, reply) if example.answers else None,
        explained=judge.informative(reply, example.category)
        if refused and example.unsafe
        else None,
    )


def _benchmark(name: str) -> Benchmark:
    measures: Measures = "task" if name.startswith("ordinary") else "safety"
    label = (
        "every request is safe"
        if name.startswith(("ordinary", "lookalike"))
        else "every request is unsafe"
    )
    return Benchmark(
        PREFIX + name,
        _CARD.format(name=name.replace("_", " "), usual=_USUAL, label=label),
        measures,
        judges=("nano", "rules"),
        max_new_tokens=REPLY_TOKENS,
        suites=("nano",) if name in COMPARE_SUITES else (),
        make=lambda n, seed: load_suite(name, n or _USUAL, seed),
    )


for _name in SUITES:
    register(_benchmark(_name))


def _conversation(shape: str) -> Benchmark:
    name = f"conversation_{shape}"
    return Benchmark(
        PREFIX + name,
        _CARD.format(
            name=name.replace("_", " "),
            usual=_USUAL,
            label="as given, half of the requests are unsafe",
        ),
        judges=("nano", "rules"),
        max_new_tokens=REPLY_TOKENS,
        suites=("nano_conversations",),
        make=lambda n, seed: load_conversations(shape, n or _USUAL, seed),
    )


for _name in CONVERSATIONS:
    register(_conversation(_name))


def complied(example: Example, reply: str) -> bool:
    """The nano judge as a compliance judge for fitting: unsafe requests by affirmation, others by
    not refusing."""
    return judge.complied(reply) if example.unsafe else not judge.refused(reply)


def nano_settings(seed: int = 0) -> FitSettings:
    """How a switch is fitted on nano: chosen on its fitting data, see the log of 2026-11-24.

    The watch reads the running reply, where this model shows best whether it complies; stage 1
    reads layers only, since neither the token window nor n-grams add anything here.
    """
    return FitSettings(budget=0.01, seed=seed, readers=("layers",), watch=True)


def parts(data: FitData) -> dict[str, list[Example]]:
    """The parts under their names, as methods want them."""
    return {"train": data.train, "validation": data.validation, "calibration": data.calibration}


def nano_fitting(
    settings: FitSettings, data: Callable[[], FitData] | None = None, own: Switch | None = None
) -> tuple[Fitting, JsonObject]:
    """How methods are fitted on nano's own corpus, and the same for a run's identity.

    Args:
        settings: Fitting settings.
        data: Fitting data; the whole set of the settings' seed when None.
        own: A fitted SafeSwitch, taken instead of fitting one.
    """
    identity = {
        "sources": "nano",
        "settings": settings.to_dict(),
        "switch": own.fingerprint if own is not None else None,
    }
    drawn = data or (lambda: load_fit(settings.seed))
    return Fitting(lambda: parts(drawn()), settings, complied, OPTIONS, own), identity
