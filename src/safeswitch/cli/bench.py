"""``safeswitch eval`` and ``safeswitch compare``: parse, call one function, print."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from safeswitch.cli.load import load_engine, load_switch
from safeswitch.cli.options import (
    DeviceMapOption,
    DtypeOption,
    ModelOption,
    OtherModelOption,
    RevisionOption,
    SeedOption,
    SwitchOption,
    TemplateOption,
)
from safeswitch.core.errors import SettingError

SuiteOption = Annotated[str, typer.Option("--suite", help="nano, quick, paper or full.")]
BenchmarkOption = Annotated[
    list[str] | None, typer.Option("--benchmark", help="A benchmark in place of the suite's; repeat for more.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of benchmark files, one <name>.jsonl each.")]
HubOption = Annotated[bool, typer.Option("--hub", help="Ask the hub for benchmarks that the folder does not hold.")]
OutOption = Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run there is gone on with.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Most requests of each benchmark, drawn at random.")]
LongestOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest reply in tokens; default: each benchmark's own.")
]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option("--judge", help="A further judge, as openai:MODEL@URL or llama-guard:MODEL; repeat for more."),
]
BatchOption = Annotated[int, typer.Option(min=1)]
FitDataOption = Annotated[
    list[str] | None, typer.Option("--fit-data", help="File or hub data set to fit methods on; none: nano's own.")
]


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
    _run(engine, model, methods, switch, None, suite, benchmark, data, hub, limit, seed, max_new_tokens, judge, out)


def compare(
    model: ModelOption,
    out: OutOption,
    methods: Annotated[str, typer.Option("--methods", help="Methods, joined by commas.")] = "base,prompt,head,safeswitch",
    switch: SwitchOption = None,
    fit_data: FitDataOption = None,
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

    With --switch that bundle is taken as SafeSwitch, and its head as the always-on head.
    """
    names = tuple(name.strip() for name in methods.split(","))
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    _run(engine, model, names, switch, fit_data, suite, benchmark, data, hub, limit, seed, max_new_tokens, judge, out)


def _run(
    engine: Any, model: str, methods: tuple[str, ...], switch: str | None, fit_data: list[str] | None, suite: str,
    benchmark: list[str] | None, data: Path | None, hub: bool, limit: int | None, seed: int,
    max_new_tokens: int | None, judge: list[str] | None, out: Path,
) -> None:
    from safeswitch.evaluation.bench import Asked, run_bench
    from safeswitch.evaluation.candidates import check_methods, prepare
    from safeswitch.evaluation.catalogue import benchmarks, suite_benchmarks
    from safeswitch.evaluation.fit_source import fitting_on
    from safeswitch.evaluation.judges.named import make_judge
    from safeswitch.evaluation.picture import check_drawable
    from safeswitch.nano.bench import nano_fitting, nano_settings
    from safeswitch.switch.fit_settings import FitSettings

    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    own = load_switch(switch)
    if model == "nano" and not fit_data:
        fitting, told = nano_fitting(nano_settings(seed), own=own)
    else:
        fitting, told = fitting_on(engine, fit_data or (), FitSettings(seed=seed), own, say)
    benchmarks()
    check_drawable()
    judges = tuple(make_judge(spec, out / "judge-cache") for spec in judge or ())
    check_methods(methods, judges)
    asked = Asked(
        suite if not benchmark else "own", tuple(benchmark or suite_benchmarks(suite)), data, hub, limit, seed,
        max_new_tokens, judges=judges, command=tuple(sys.argv), fit=told,
    )
    with bars(console) as advance:
        run_bench(
            engine, asked, lambda log: prepare(engine, methods, fitting, log, say), out, say=say, progress=advance
        )
    Console().print(Markdown((out / "table.md").read_text(encoding="utf-8")))
    print(f"written to {out}: table.md, tables/, figures.json, pareto.png")


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
        from safeswitch.evaluation.harness import run_tasks
    except ModuleNotFoundError as error:
        raise SettingError(f"safeswitch harness needs {error.name}: pip install 'safeswitch[harness]'") from error
    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    results = run_tasks(
        engine, load_switch(switch), tasks.split(","), include_path=include_path, limit=limit, chat_turns=chat_turns
    )
    write_json(out, results)
    for task, figures in results["results"].items():
        print(task, *(f"{name}={value}" for name, value in figures.items() if "," in name))


@contextmanager
def bars(console: Console) -> Iterator[Any]:
    """One bar a method and benchmark, on standard error; none where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[tuple[str, str], Any] = {}

        def advance(method: str, benchmark: str, done: int) -> None:
            if (method, benchmark) not in tasks:
                tasks[method, benchmark] = progress.add_task(f"{method} on {benchmark}", total=None)
            progress.advance(tasks[method, benchmark], done)

        yield advance
