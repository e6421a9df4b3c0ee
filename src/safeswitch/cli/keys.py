"""``safeswitch keys``: who may ask the server for what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from safeswitch.cli.command import Group, add
from safeswitch.cli.screen import put, put_json

keys_app = typer.Typer(
    cls=Group, no_args_is_help=True, help="API keys of the server: a file of hashes."
)
FileOption = Annotated[Path, typer.Option("--file", help="File of keys.")]


@dataclass(frozen=True)
class RightOptions:
    """What a client may do."""

    panel: ClassVar[str] = "Rights"

    rate: Annotated[
        str, typer.Option(help="As 60/minute or '10/second;1000/hour'; none: no limit.")
    ] = ""
    concurrent: Annotated[
        int,
        typer.Option(min=0, help="Most requests at one time in each process; 0: no limit."),
    ] = 0
    may: Annotated[
        list[str] | None,
        typer.Option(help="A policy that the client may ask for; repeat for more."),
    ] = None
    bundle: Annotated[
        list[str] | None,
        typer.Option(help="A bundle for the client, the first its default; repeat for more."),
    ] = None
    scores: Annotated[
        bool, typer.Option("--scores", help="The client may see scores and thresholds.")
    ] = False
    extra_fields: Annotated[
        bool,
        typer.Option(
            "--extra-fields",
            help="The client may send fields that need a right (vllm_xargs, priority).",
        ),
    ] = False
    admin: Annotated[
        bool, typer.Option("--admin", help="The key may change thresholds, and see scores.")
    ] = False


def add_client(
    name: Annotated[str, typer.Argument(help="Name of the client, for the audit.")],
    file: FileOption,
    rights: RightOptions,
) -> None:
    """Make a key and print it, this once: the file keeps its hash alone."""
    from safeswitch.serving.keys import add_key

    key = add_key(
        file,
        name,
        rate=rights.rate,
        concurrent=rights.concurrent,
        may=tuple(rights.may or ()),
        bundles=tuple(rights.bundle or ()),
        scores=rights.scores,
        extra_fields=rights.extra_fields,
        admin=rights.admin,
    )
    put(key)


def remove(
    name: Annotated[str, typer.Argument(help="Name of the client.")], file: FileOption
) -> None:
    """Take a key away; running servers refuse it from their next request on."""
    from safeswitch.serving.keys import remove_key

    remove_key(file, name)


def list_keys(file: FileOption) -> None:
    """Print who has a key and what it may do, one JSON object a line; no key and no hash."""
    from safeswitch.serving.keys import read_keys

    for key in read_keys(file).values():
        put_json({name: value for name, value in asdict(key).items() if name != "sha256"})


add(keys_app, add_client, "add")
add(keys_app, remove)
add(keys_app, list_keys, "list")
