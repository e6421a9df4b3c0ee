"""``safeswitch analyse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.config import write_config
from safeswitch.cli.load import load_engine
from safeswitch.cli.options import ModelOptions, SeedOption, one_of
from safeswitch.cli.screen import put, say
from safeswitch.core.grammar import entries


def analyse(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Run folder of eval or compare.")],
    model: ModelOptions,
    analyses: Annotated[
        str | None,
        typer.Option(
            help="Analyses, joined by commas: projection, quality, strips, one of an installed "
            "package, or file.py:Name. None: all that are known."
        ),
    ] = None,
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
    from safeswitch.analyses.base import ANALYSES
    from safeswitch.analyses.run import FILE
    from safeswitch.analyses.run import analyse as look

    chosen = entries("--analyses", ANALYSES.from_files(analyses)) if analyses else None
    engine = load_engine(model)
    look(
        engine,
        run,
        analyses=chosen,
        method=method,
        limit=limit,
        strips=strips,
        how=how,
        seed=seed,
        say=say,
    )
    write_config(context, run)
    put(run / FILE)
