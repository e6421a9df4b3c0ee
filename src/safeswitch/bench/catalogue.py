"""All benchmarks by name, and the suites: lists of names that are run together. Knows nothing of how they are run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

import safeswitch.bench.benchmarks as benchmarks_package
import safeswitch.bench.judges as judges_package
from safeswitch.bench.benchmark import BENCHMARKS, Benchmark
from safeswitch.core.errors import check_choice
from safeswitch.core.registry import Registry

SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("xstest", "harmbench", "jailbreakbench_harmful", "jailbreakbench_benign", "trustllm_jailbreak", "gsm8k", "mmlu"),
    "paper": ("sorry_bench", "trustllm_misuse", "trustllm_jailbreak", "xstest", "alpaca_eval", "trivia_qa"),
    "full": (
        "advbench", "harmbench", "jailbreakbench_harmful", "jailbreakbench_benign", "strongreject", "sorry_bench",
        "sorry_bench_mutations", "trustllm_misuse", "trustllm_jailbreak", "xstest", "oktest", "or_bench", "or_bench_toxic",
        "phtest", "do_not_answer", "simple_safety_tests", "catqa", "multijail", "safety_prompts", "safety_prompts_attacks",
        "sode", "cyberseceval_frr", "cyberseceval_frr_multilingual", "truthfulqa", "truthfulqa_mc1", "trivia_qa",
        "gsm8k", "mmlu", "alpaca_eval", "ifeval", "mt_bench",
    ),
}
"""``paper``: the columns of SafeSwitch's table (arXiv 2502.01042). Packages further down may add suites of their own."""


def benchmarks() -> Registry[Benchmark]:
    """The table of benchmarks, filled, and with it that of judges: importing their modules is what adds them."""
    for package in (judges_package, benchmarks_package):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return BENCHMARKS


def suite_benchmarks(name: str) -> tuple[str, ...]:
    """The benchmarks of a suite.

    Raises:
        SettingError: no such suite.
    """
    suites: Mapping[str, tuple[str, ...]] = SUITES
    check_choice("suite", "name", name, tuple(suites))
    return suites[name]
