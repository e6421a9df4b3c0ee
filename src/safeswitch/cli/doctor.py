"""``safeswitch doctor``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.load import model_folder, no_bars_in_a_file
from safeswitch.cli.options import ENGINES, chosen_engine, one_of, switch_folder
from safeswitch.cli.screen import put, put_json


def doctor(
    bundle: Annotated[str, typer.Option(help="Switch folder or hub id; 'nano': its own.")] = "",
    model: Annotated[
        str, typer.Option(help="Model folder or hub id; its weights are not loaded.")
    ] = "",
    url: Annotated[str, typer.Option(help="Address of a server that runs.")] = "",
    policy_file: Annotated[Path | None, typer.Option(help="YAML policy of the server.")] = None,
    keys: Annotated[Path | None, typer.Option(help="File of API keys.")] = None,
    audit_db: Annotated[str, typer.Option(help="SQLAlchemy URL of the audit database.")] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="vllm or transformers. None: vllm where it is installed.",
            autocompletion=one_of(*ENGINES),
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with all findings.")
    ] = False,
) -> None:
    """Examine an installation of the server: one line for each thing looked at.

    ok, hint (the server runs, and something should be done) or fault, with what to do. Nothing is
    changed. Exit code 1 where there is a fault.
    """
    from safeswitch.serving.doctor.base import Installation
    from safeswitch.serving.doctor.table import examine

    no_bars_in_a_file()
    at = Installation(
        chosen_engine(engine),
        bundle=switch_folder(bundle) if bundle else "",
        model=model_folder(model) if model else "",
        policy_file=policy_file,
        keys=keys,
        audit_db=audit_db,
        url=url,
    )
    found = []
    for one in examine(at):
        found.append(one)
        if not as_json:
            put(f"{one.state:<5} {one.check:<11} {one.text}")
    sound = all(one.state != "fault" for one in found)
    if as_json:
        put_json({"ok": sound, "findings": [asdict(one) for one in found]}, indent=2)
    raise typer.Exit(0 if sound else 1)
