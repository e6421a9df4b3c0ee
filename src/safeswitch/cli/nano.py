"""``safeswitch nano``: the embedded tiny model, rebuilt, measured and studied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.command import Group, add
from safeswitch.cli.config import write_config
from safeswitch.cli.load import load_engine
from safeswitch.cli.options import ModelOptions, SeedOption
from safeswitch.cli.screen import put_markdown, say

nano_app = typer.Typer(
    cls=Group, no_args_is_help=True, help="The embedded tiny model: rebuild, measure, study."
)


def build(
    out: Annotated[Path, typer.Option("--out", help="Folder for weights and tokenizer.")],
    seed: SeedOption = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, when not the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Resume an unfinished run in the folder.")] = True,
) -> None:
    """Rebuild the embedded model from nothing (resumable)."""
    from safeswitch.nano.build import build as run

    run(out, seed=seed, resume=resume, steps=steps)


def switch(
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")] = Path("build/nano-switch"),
    seed: SeedOption = 0,
) -> None:
    """Fit nano's own switch anew, as the one that is shipped was."""
    from safeswitch.nano.study import fit_switch

    fit_switch(seed, say=say).save_pretrained(out)
    say(f"written to {out}")


def table(
    model: Annotated[str, typer.Option("--model", help="Model folder or hub id.")] = "nano",
    n: Annotated[int, typer.Option(min=10, help="Requests a suite.")] = 300,
) -> None:
    """Show how the bare model behaves on every suite."""
    from safeswitch.nano.evaluate import base_model_table

    engine = load_engine(ModelOptions(model))
    base_model_table(engine.lm.model, engine.lm.tokenizer, n)


def study(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder for the study.")] = Path("build/study"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of fitting.")] = 3,
    n: Annotated[int, typer.Option(min=10, help="Requests a suite.")] = 300,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="Suite to run; repeat for more. None: all."),
    ] = None,
) -> None:
    """Measure the switch over several seeds, against the goals, with paired tests."""
    from safeswitch.nano.effect import run_study
    from safeswitch.nano.suites import SUITES

    run_study(out, seeds=seeds, n=n, suites=tuple(suite or SUITES), say=say)
    write_config(context, out)
    put_markdown((out / "study.md").read_text(encoding="utf-8"))


add(nano_app, build)
add(nano_app, switch)
add(nano_app, table)
add(nano_app, study)
