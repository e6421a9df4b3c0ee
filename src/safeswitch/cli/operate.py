"""``safeswitch keys`` and ``safeswitch audit``: what an operator does beside the running server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.screen import put, put_json

keys_app = typer.Typer(no_args_is_help=True, help="API keys of the server: a file of hashes.")
audit_app = typer.Typer(no_args_is_help=True, help="The server's record of decisions.")
FileOption = Annotated[Path, typer.Option("--file", help="File of keys.")]
UrlOption = Annotated[str, typer.Option("--url", help="SQLAlchemy URL of the audit database, as sqlite:///audit.db.")]


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Name of the client, for the audit.")],
    file: FileOption,
    rate: Annotated[str, typer.Option(help="As 60/minute or '10/second;1000/hour'; none: no limit.")] = "",
    concurrent: Annotated[int, typer.Option(min=0, help="Most requests at one time in each process; 0: no limit.")] = 0,
    may: Annotated[list[str] | None, typer.Option(help="A policy that the client may ask for; several times.")] = None,
    bundle: Annotated[list[str] | None, typer.Option(help="A bundle for the client, the first its default.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="The client may see scores and thresholds.")] = False,
    extra_fields: Annotated[
        bool, typer.Option("--extra-fields", help="The client may send fields that need a right (vllm_xargs, priority).")
    ] = False,
    admin: Annotated[bool, typer.Option("--admin", help="The key may change thresholds, and see scores.")] = False,
) -> None:
    """Make a key and print it, this once: the file keeps its hash alone."""
    from safeswitch.serving.keys import add_key

    rights = {
        "may": tuple(may or ()), "bundles": tuple(bundle or ()), "scores": scores, "extra_fields": extra_fields,
        "admin": admin,
    }
    put(add_key(file, name, rate=rate, concurrent=concurrent, **rights))


@keys_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Name of the client.")], file: FileOption) -> None:
    """Take a key away; running servers refuse it from their next request on."""
    from safeswitch.serving.keys import remove_key

    remove_key(file, name)


@keys_app.command("list")
def list_keys(file: FileOption) -> None:
    """Who has a key and what it may do, one JSON object a line; no key and no hash."""
    from dataclasses import asdict

    from safeswitch.serving.keys import read_keys

    for key in read_keys(file).values():
        put_json({name: value for name, value in asdict(key).items() if name != "sha256"})


@audit_app.command("export")
def export(
    url: UrlOption,
    since_days: Annotated[float | None, typer.Option(min=0, help="Only the last so many days.")] = None,
) -> None:
    """Print the records, oldest first, one JSON object a line."""
    from safeswitch.serving.audit import Audit

    store = Audit(url)
    for row in store.export(since=0.0 if since_days is None else time.time() - since_days * 86400):
        put_json(row)
    store.close()


@audit_app.command("forget")
def forget(
    url: UrlOption,
    days: Annotated[float, typer.Option(min=0, help="Keep the last so many days.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say how many there are.")] = False,
) -> None:
    """Delete records older than so many days."""
    from safeswitch.serving.audit import Audit

    store, before = Audit(url), time.time() - days * 86400
    try:
        if yes:
            put(f"{store.forget(before=before)} records deleted")
        else:
            put(f"{store.count(before=before)} records are older; --yes deletes them")
    finally:
        store.close()
