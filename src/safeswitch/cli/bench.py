"""``safeswitch eval`` and ``safeswitch compare``: parse, call one function, print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from safeswitch.cli.load import load_engine, load_fitting, load_switch
from safeswitch.cli.options import (
    BatchOption,
    BenchmarkOption,
    DataOption,
    DeviceMapOption,
    DtypeOption,
    FitDataOption,
    HubOption,
    JudgeOption,
    LeaveOutOption,
    LimitOption,
    LongestOption,
    ModelOption,
    OtherModelOption,
    OutOption,
    RevisionOption,
    SeedOption,
    SuiteOption,
    SwitchOption,
    TemplateOption,
)
from safeswitch.cli.screen import bars, put, put_markdown, say
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import entries


def evaluate(
    model: ModelOption,
    out: OutOption,
    switch: SwitchOption = None,
    suite: SuiteOption = "quick",
    benchmark: BenchmarkOption = None,
    data: DataOption = None,
    hub: HubOption = False,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    max_new_tokens: LongestOption = None,
    judge: JudgeOption = None,
    batch_size: BatchOption = 32,
    allow_other_model: OtherModelOption = False,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Measure one model, with a switch or untouched, on a suite: log, tables and pictures, resumable."""
    methods = ("safeswitch",) if switch else ("base",)
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    _run(engine, model, methods, switch, None, False, suite, benchmark, data, hub, limit, seed, max_new_tokens, judge, out)


def compare(
    model: ModelOption,
    out: OutOption,
    methods: Annotated[str, typer.Option("--methods", help="Methods, joined by commas.")] = "base,prompt,head,safeswitch",
    switch: SwitchOption = None,
    fit_data: FitDataOption = None,
    leave_out: LeaveOutOption = True,
    efforts: Annotated[
        str | None,
        typer.Option(help="Run each method at each: plain, cot, budget<N> (tokens of thinking), joined by commas."),
    ] = None,
    suite: SuiteOption = "quick",
    benchmark: BenchmarkOption = None,
    data: DataOption = None,
    hub: HubOption = False,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    max_new_tokens: LongestOption = None,
    judge: JudgeOption = None,
    batch_size: BatchOption = 32,
    allow_other_model: OtherModelOption = False,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Compare methods on a suite: tables, paired tests, cost and the Pareto picture; resumable.

    With --switch that bundle is taken as SafeSwitch, and its head as the always-on head. With --efforts, safety against
    reasoning effort: tradeoff.md and tradeoff.csv beside the tables.
    """
    from safeswitch.bench.effort import at_efforts, check_efforts
    from safeswitch.bench.tradeoff import write_tradeoff

    names = entries("--methods", methods)
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    chosen = check_efforts(entries("--efforts", efforts), engine.lm) if efforts else None
    _run(
        engine, model, names, switch, fit_data, leave_out, suite, benchmark, data, hub, limit, seed, max_new_tokens, judge, out,
        around=lambda ready: at_efforts(ready, chosen) if chosen else ready,
    )
    if chosen:
        write_tradeoff(out)
        put_markdown((out / "tradeoff.md").read_text(encoding="utf-8"))
        put(f"written to {out}: tradeoff.md, tradeoff.csv")


def _run(
    engine: Any, model: str, methods: tuple[str, ...], switch: str | None, fit_data: list[str] | None, leave_out: bool,
    suite: str, benchmark: list[str] | None, data: Path | None, hub: bool, limit: int | None, seed: int,
    max_new_tokens: int | None, judge: list[str] | None, out: Path, around: Callable[[Any], Any] = lambda ready: ready,
) -> None:
    """Run methods on a suite and print the first table.

    Args:
        around: Makes out of what prepares the methods what is run.
    """
    from safeswitch.bench.bench import Asked, run_bench
    from safeswitch.bench.candidates import check_methods, prepare
    from safeswitch.bench.catalogue import benchmarks, suite_benchmarks
    from safeswitch.bench.judges.named import make_judge
    from safeswitch.bench.picture import check_drawable

    fitting, told = load_fitting(engine, model, fit_data, load_switch(switch), seed, leave_out, say)
    benchmarks()
    check_drawable()
    judges = tuple(make_judge(spec, out / "judge-cache") for spec in judge or ())
    check_methods(methods, judges)
    asked = Asked(
        suite if not benchmark else "own", tuple(benchmark or suite_benchmarks(suite)), data, hub, limit, seed,
        max_new_tokens, judges=judges, command=tuple(sys.argv), fit=told,
    )
    with bars() as advance:
        run_bench(
            engine, asked, around(lambda log: prepare(engine, methods, fitting, log, say)), out, say=say, progress=advance
        )
    put_markdown((out / "table.md").read_text(encoding="utf-8"))
    put(f"written to {out}: table.md, tables/, figures.json, pareto.png")


def harness(
    model: ModelOption,
    tasks: Annotated[str, typer.Option("--tasks", help="Tasks of lm-evaluation-harness, joined by commas.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file for the results.")],
    switch: SwitchOption = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with more tasks, as YAML files.")] = None,
    limit: LimitOption = None,
    chat_turns: Annotated[bool, typer.Option("--chat-turns", help="Give examples as turns, not in one text.")] = False,
    batch_size: BatchOption = 32,
    allow_other_model: OtherModelOption = False,
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
) -> None:
    """Utility under a switch, through lm-evaluation-harness."""
    from safeswitch.core.artifact import write_json

    try:
        from safeswitch.bridges.lm_eval import run_tasks
    except ModuleNotFoundError as error:
        raise SettingError(f"safeswitch harness needs {error.name}: pip install 'safeswitch[harness]'") from error
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    results = run_tasks(
        engine, load_switch(switch), entries("--tasks", tasks), include_path=include_path, limit=limit, chat_turns=chat_turns
    )
    write_json(out, results)
    for task, figures in results["results"].items():
        told = [f"{name}={value}" for name, value in figures.items() if "," in name]
        put(" ".join([task, *told]))
