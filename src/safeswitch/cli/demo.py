"""``safeswitch demo``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.config import write_config
from safeswitch.cli.options import SeedOption
from safeswitch.cli.screen import put, put_markdown, say


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results.json, table.md and picture.png.")
    ] = Path("build/demo"),
    n: Annotated[int, typer.Option(min=10, help="Requests a suite.")] = 100,
    seed: SeedOption = 0,
) -> None:
    """Do the whole job on the embedded model: fit, compare, one table and one picture."""
    from safeswitch.nano.study import demo_settings, run_demo

    data, settings = demo_settings(seed)
    run_demo(out, n=n, data=data, settings=settings, seed=seed, say=say)
    write_config(context, out)
    seconds = json.loads((out / "results.json").read_text(encoding="utf-8"))["seconds"]
    put_markdown((out / "table.md").read_text(encoding="utf-8"))
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds["stages"].items())
    put(f"seconds: {seconds['total']:.1f} in all ({spent})")
    put(f"picture: {out / 'picture.png'}")
