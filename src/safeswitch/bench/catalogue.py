"""Suites: names of benchmarks that are run together. Knows nothing of how they are run."""

from __future__ import annotations

from collections.abc import Mapping

from safeswitch.bench.benchmark import BENCHMARKS
from safeswitch.core.errors import check_choice

CHOSEN: Mapping[str, tuple[str, ...]] = {
    "quick": (
        "xstest", "harmbench", "jailbreakbench_harmful", "jailbreakbench_benign",
        "trustllm_jailbreak", "gsm8k", "mmlu",
    ),
    "paper": (
        "sorry_bench", "trustllm_misuse", "trustllm_jailbreak", "xstest", "alpaca_eval", "trivia_qa",
    ),
}  # fmt: skip
"""``paper``: the columns of SafeSwitch's table (arXiv 2502.01042)."""


def suites() -> dict[str, tuple[str, ...]]:
    """Every suite with its benchmarks: the chosen ones, and those that benchmarks say they belong
    to."""
    found = dict(CHOSEN)
    for name in BENCHMARKS:
        for suite in BENCHMARKS[name].suites:
            found[suite] = (*found.get(suite, ()), name)
    return found


def suite_benchmarks(name: str) -> tuple[str, ...]:
    """The benchmarks of a suite.

    Raises:
        SettingError: no such suite.
    """
    known = suites()
    check_choice("suite", "name", name, tuple(known))
    return known[name]
