"""``safeswitch eval``."""

from __future__ import annotations

import typer

from safeswitch.cli.load import load_fitting, load_guard
from safeswitch.cli.measured import measured_engine, runs_in
from safeswitch.cli.options import MeasuredModelOptions, SuiteRunOptions, SwitchOptions
from safeswitch.cli.screen import say
from safeswitch.cli.suite import run_suite


def evaluate(
    context: typer.Context, model: MeasuredModelOptions, guard: SwitchOptions, run: SuiteRunOptions
) -> None:
    """Measure one model, with a switch or none, on a suite: log, tables, pictures; resumable.

    With --url the model is that of a server, ours or another's.
    """
    from safeswitch.bench.candidates import check_engine

    methods = ("safeswitch",) if guard.switch else ("base",)
    own = load_guard(guard.switch)
    check_engine(methods, runs_in(model), own)
    with measured_engine(model, allow_other_model=guard.allow_other_model) as engine:
        fitting = load_fitting(
            engine, model.model, None, own, seed=run.seed, leave_out=False, say=say
        )
        run_suite(context, engine, methods, fitting, run)
