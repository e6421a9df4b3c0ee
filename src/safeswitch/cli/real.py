"""``safeswitch real``: the demo's job on a small real language model."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.options import SeedOption
from safeswitch.cli.screen import bar, bars, put_markdown, say


def real(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for results.json, table.md and picture.png.")
    ] = Path("build/real"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Another model; default: SmolLM2-135M-Instruct from the package index."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder of public sets, JSONL with labels; none: the starter set alone."
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=50, help="Measured requests in all, shared among the suites.")
    ] = 480,
    per_kind: Annotated[
        int, typer.Option(min=100, help="Most fitting rows of each kind of the starter set.")
    ] = 200,
    seed: SeedOption = 0,
) -> None:
    """The whole job on a real model: fit without data, compare, one table and one picture.

    Made to take about half an hour on two idle cores; a larger --per-kind reads more of the starter
    set and catches more. A run that was cut off is resumed.
    """
    from safeswitch.cli.load import no_bars_in_a_file
    from safeswitch.nano.real import run_real
    from safeswitch.nano.wheel import NAME, real_model

    no_bars_in_a_file()
    file = real_model(out / "model") if model is None else model
    with ExitStack() as stack:
        # opened by the first reply: fitting has bars of its own, and a terminal shows one set
        shown = cache(lambda: stack.enter_context(bars()))
        run_real(
            out,
            file,
            name=NAME if model is None else model,
            data=data,
            requests=requests,
            per_source=per_kind,
            seed=seed,
            say=say,
            track=bar,
            progress=lambda *done: shown()(*done),
        )
    put_markdown((out / "table.md").read_text(encoding="utf-8"))
