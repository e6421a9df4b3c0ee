"""``safeswitch eval``."""

from __future__ import annotations

import typer

from safeswitch.cli.load import load_engine, load_fitting, load_guard
from safeswitch.cli.options import BatchedModelOptions, SuiteRunOptions, SwitchOptions
from safeswitch.cli.screen import say
from safeswitch.cli.suite import run_suite


def evaluate(
    context: typer.Context, model: BatchedModelOptions, guard: SwitchOptions, run: SuiteRunOptions
) -> None:
    """Measure one model, with a switch or none, on a suite: log, tables, pictures; resumable."""
    methods = ("safeswitch",) if guard.switch else ("base",)
    engine = load_engine(
        model, batch_size=model.batch_size, allow_other_model=guard.allow_other_model
    )
    own = load_guard(guard.switch)
    fitting = load_fitting(engine, model.model, None, own, seed=run.seed, leave_out=False, say=say)
    run_suite(context, engine, methods, fitting, run)
