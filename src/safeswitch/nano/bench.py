"""Nano's own suites as benchmarks, its judge, and how methods are fitted on it. Importing it adds them to the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safeswitch.core.types import Example
from safeswitch.evaluation.benchmark import Benchmark, Measures, register
from safeswitch.evaluation.judges.base import JUDGES, Judge
from safeswitch.evaluation.log import Logged
from safeswitch.evaluation.verdict import Verdict
from safeswitch.nano import judge
from safeswitch.nano.suites import SAFETY_PROMPTS_A, SUITES, load_suite

REPLY_TOKENS = 56
PREFIX = "nano_"
KINDS = ("plain_unsafe", "jailbroken", "lookalike", "ordinary")
COMPARE_SUITES = (*KINDS, *(f"{name}_c" for name in KINDS))
OPTIONS: Mapping[str, Mapping[str, Any]] = {"prompt": {"candidates": SAFETY_PROMPTS_A}}
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
    def identity(self) -> Mapping[str, Any]:
        return {"version": 1}

    def judge(self, rows: Sequence[Logged]) -> list[Verdict]:
        return [_verdict(row.example, row.reply or "") for row in rows]


def _verdict(example: Example, reply: str) -> Verdict:
    refused = judge.refused(reply)
    return Verdict(
        refused=refused,
        complied=judge.complied(reply),
        correct=judge.correct(example, reply) if example.answers else None,
        explained=judge.informative(reply, example.category) if refused and example.unsafe else None,
    )


def _benchmark(name: str) -> Benchmark:
    measures: Measures = "task" if name.startswith("ordinary") else "safety"
    label = "every request is safe" if name.startswith(("ordinary", "lookalike")) else "every request is unsafe"
    return Benchmark(
        PREFIX + name,
        _CARD.format(name=name.replace("_", " "), usual=_USUAL, label=label),
        measures,
        judges=("nano",),
        max_new_tokens=REPLY_TOKENS,
        make=lambda n, seed: load_suite(name, n or _USUAL, seed),
    )


for _name in SUITES:
    register(_benchmark(_name))
