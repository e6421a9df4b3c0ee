"""``safeswitch compare``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from safeswitch.cli.load import load_engine, load_fitting, load_guard
from safeswitch.cli.options import (
    BatchedModelOptions,
    FitDataOption,
    LeaveOutOption,
    SuiteRunOptions,
    SwitchOptions,
)
from safeswitch.cli.screen import put, put_markdown, say
from safeswitch.cli.suite import run_suite
from safeswitch.core.grammar import entries


@dataclass(frozen=True)
class MethodOptions:
    """What is compared, and what it is fitted on."""

    panel: ClassVar[str] = "Methods"

    methods: Annotated[str, typer.Option("--methods", help="Methods, joined by commas.")] = (
        "base,prompt,head,safeswitch"
    )
    fit_data: FitDataOption = None
    leave_out: LeaveOutOption = True
    efforts: Annotated[
        str | None,
        typer.Option(
            help="Run each method at each: plain, cot, budget<N> (tokens of thinking), "
            "joined by commas."
        ),
    ] = None


def compare(
    context: typer.Context,
    model: BatchedModelOptions,
    guard: SwitchOptions,
    run: SuiteRunOptions,
    compared: MethodOptions,
) -> None:
    """Compare methods on a suite: tables, paired tests, cost and the Pareto picture; resumable.

    With --switch that bundle is taken as SafeSwitch, and its head as the always-on head. With
    --efforts, safety against reasoning effort: tradeoff.md and tradeoff.csv beside the tables.
    """
    from safeswitch.bench.effort import at_efforts, check_efforts
    from safeswitch.bench.tradeoff import write_tradeoff
    from safeswitch.methods.base import METHODS

    names = entries("--methods", METHODS.from_files(compared.methods))
    engine = load_engine(
        model, batch_size=model.batch_size, allow_other_model=guard.allow_other_model
    )
    efforts = compared.efforts
    chosen = check_efforts(entries("--efforts", efforts), engine.lm) if efforts else None
    fitting = load_fitting(
        engine,
        model.model,
        compared.fit_data,
        load_guard(guard.switch),
        seed=run.seed,
        leave_out=compared.leave_out,
        say=say,
    )
    if not chosen:
        run_suite(context, engine, names, fitting, run)
        return
    run_suite(context, engine, names, fitting, run, around=lambda ready: at_efforts(ready, chosen))
    write_tradeoff(run.out)
    put_markdown((run.out / "tradeoff.md").read_text(encoding="utf-8"))
    put(f"written to {run.out}: tradeoff.md, tradeoff.csv")
