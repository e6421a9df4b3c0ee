"""``safeswitch compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.load import load_fitting, load_guard
from safeswitch.cli.measured import RunsIn, measured_engine, remote_engine, runs_in
from safeswitch.cli.options import (
    FitDataOption,
    LeaveOutOption,
    MeasuredModelOptions,
    SuiteRunOptions,
    SwitchOptions,
)
from safeswitch.cli.screen import put, put_markdown, say
from safeswitch.cli.suite import run_suite
from safeswitch.core.grammar import entries
from safeswitch.core.json_types import JsonObject

if TYPE_CHECKING:
    from safeswitch.bench.candidates import Fitting
    from safeswitch.switch.engine import MeasuredEngine

_USUAL: Mapping[RunsIn, str] = {
    "transformers": "base,prompt,head,safeswitch",
    "vllm": "base,head,safeswitch",
    "server": "base",
}
"""Methods that are compared unless others are named."""


@dataclass(frozen=True)
class MethodOptions:
    """What is compared, and what it is fitted on."""

    panel: ClassVar[str] = "Methods"

    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Methods, joined by commas. None: base,prompt,head,safeswitch; without prompt in "
            "vLLM; base alone at a server.",
        ),
    ] = None
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
    model: MeasuredModelOptions,
    guard: SwitchOptions,
    run: SuiteRunOptions,
    compared: MethodOptions,
) -> None:
    """Compare methods on a suite: tables, paired tests, cost and the Pareto picture; resumable.

    With --switch that bundle is taken as SafeSwitch, and its head as the always-on head. With
    --efforts, safety against reasoning effort: tradeoff.md and tradeoff.csv beside the tables.
    With --model and --url, the server's model is one more method, called url.
    """
    from safeswitch.bench.candidates import beside, check_engine, check_methods
    from safeswitch.methods.base import METHODS

    where = runs_in(model, beside=True)
    names = entries("--methods", METHODS.from_files(compared.methods or _USUAL[where]))
    own = load_guard(guard.switch)
    check_methods(names)
    check_engine(names, where, own)
    with measured_engine(model, allow_other_model=guard.allow_other_model, beside=True) as engine:
        fitting = load_fitting(
            engine,
            model.model,
            compared.fit_data,
            own,
            seed=run.seed,
            leave_out=compared.leave_out,
            say=say,
        )
        if compared.efforts:
            _compare_efforts(context, engine, names, fitting, run, compared.efforts)
        elif model.model and model.url:
            server = remote_engine(model)
            run_suite(
                context, engine, names, fitting, run, around=lambda ready: beside(ready, server)
            )
        else:
            run_suite(context, engine, names, fitting, run)


def _compare_efforts(
    context: typer.Context,
    engine: MeasuredEngine,
    names: Sequence[str],
    fitting: tuple[Fitting, JsonObject],
    run: SuiteRunOptions,
    efforts: str,
) -> None:
    """Every method at every effort, and the table of both.

    Raises:
        SettingError: an unknown effort, or an engine whose model's thinking is not in our hands.
    """
    from safeswitch.bench.effort import at_efforts, check_efforts
    from safeswitch.bench.tradeoff import write_tradeoff

    chosen = check_efforts(entries("--efforts", efforts), engine.lm)
    run_suite(context, engine, names, fitting, run, around=lambda ready: at_efforts(ready, chosen))
    write_tradeoff(run.out)
    put_markdown((run.out / "tradeoff.md").read_text(encoding="utf-8"))
    put(f"written to {run.out}: tradeoff.md, tradeoff.csv")
