"""``safeswitch export``: a model as a folder, for vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.options import (
    DeviceMapOption,
    DtypeOption,
    ModelOption,
    RevisionOption,
    TemplateOption,
    TrustOption,
)
from safeswitch.cli.screen import say


def export(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="Folder for the model, absent or empty.")],
    revision: RevisionOption = None,
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    chat_template: TemplateOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a model as a folder that vLLM takes.

    A PEFT adapter is merged into its base, a GGUF file dequantised.

    With --dtype auto a switch that was fitted on the model is taken on the folder too.
    """
    from safeswitch.cli.load import load_engine
    from safeswitch.models.export import export_model

    engine = load_engine(
        model, revision, dtype, device_map, chat_template, trust_remote_code=trust_remote_code
    )
    export_model(engine.lm, out)
    say(f"written to {out}; serve it with: safeswitch serve --model {out} --switch SWITCH")
