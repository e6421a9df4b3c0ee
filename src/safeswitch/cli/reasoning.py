"""``safeswitch reasoning``: what reasoning effort does to safety, method by method."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from safeswitch.cli.bench import run
from safeswitch.cli.load import load_engine
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


def reasoning(
    model: ModelOption,
    out: OutOption,
    efforts: Annotated[str, typer.Option(help="plain, cot, budget<N> (tokens of thinking), joined by commas.")] = "plain,cot",
    methods: Annotated[str, typer.Option("--methods", help="Methods, joined by commas.")] = "base,safeswitch",
    switch: SwitchOption = None,
    fit_data: FitDataOption = None,
    leave_out: LeaveOutOption = False,
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
    """Safety against reasoning effort: methods at every effort, with harm, over-refusal, accuracy, tokens; resumable."""
    from safeswitch.evaluation.effort import at_efforts, check_efforts
    from safeswitch.evaluation.tradeoff import write_tradeoff

    engine = load_engine(model, revision, dtype, device_map, chat_template, batch_size, allow_other_model)
    chosen = check_efforts([name.strip() for name in efforts.split(",")], engine.lm)
    names = tuple(name.strip() for name in methods.split(","))
    run(
        engine, model, names, switch, fit_data, leave_out, suite, benchmark, data, hub, limit, seed, max_new_tokens, judge, out,
        around=lambda ready: at_efforts(ready, chosen),
    )
    write_tradeoff(out)
    Console().print(Markdown((out / "tradeoff.md").read_text(encoding="utf-8")))
    print(f"written to {out}: tradeoff.md, tradeoff.csv")
