"""``safeswitch analyse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.config import write_config
from safeswitch.cli.load import load_engine
from safeswitch.cli.options import ModelOptions, SeedOption, one_of
from safeswitch.cli.screen import put, say


def analyse(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder of eval or compare.")],
    model: ModelOptions,
    method: Annotated[
        str, typer.Option(help="Method of the run whose gate is looked at.")
    ] = "safeswitch",
    limit: Annotated[int, typer.Option(min=20, help="Most requests, drawn at random.")] = 400,
    strips: Annotated[
        int,
        typer.Option(min=0, help="Example conversations whose scores are shown token by token."),
    ] = 6,
    how: Annotated[
        str,
        typer.Option(
            help="pca, or umap, which needs the extra 'umap' of the package.",
            autocompletion=one_of("pca", "umap"),
        ),
    ] = "pca",
    seed: SeedOption = 0,
) -> None:
    """Look into a finished run: prober quality by layer, activations in 2-D, scores by token."""
    from safeswitch.evaluation.analyses.run import FILE
    from safeswitch.evaluation.analyses.run import analyse as look

    engine = load_engine(model)
    look(
        engine,
        run,
        method=method,
        limit=limit,
        strips=strips,
        how=how,  # type: ignore[arg-type]
        seed=seed,
        say=say,
    )
    write_config(context, run)
    put(run / FILE)
