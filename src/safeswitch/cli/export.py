"""``safeswitch export``: a model as a folder, for vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.options import ModelOptions
from safeswitch.cli.screen import say


def export(
    model: ModelOptions,
    out: Annotated[Path, typer.Option("--out", help="Folder for the model, absent or empty.")],
) -> None:
    """Write a model as a folder that vLLM takes.

    A PEFT adapter is merged into its base, a GGUF file dequantised.

    With --dtype auto a switch that was fitted on the model is taken on the folder too.
    """
    from safeswitch.cli.load import load_engine
    from safeswitch.models.export import export_model

    export_model(load_engine(model).lm, out)
    say(f"written to {out}; serve it with: safeswitch serve --model {out} --switch SWITCH")
