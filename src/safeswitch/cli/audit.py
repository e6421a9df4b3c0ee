"""``safeswitch audit``: the server's record of decisions, exported and cut short."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from safeswitch.cli.command import Group, add
from safeswitch.cli.screen import put, put_json

audit_app = typer.Typer(cls=Group, no_args_is_help=True, help="The server's record of decisions.")
UrlOption = Annotated[
    str,
    typer.Option("--url", help="SQLAlchemy URL of the audit database, as sqlite:///audit.db."),
]
_DAY_S = 86400


def export(
    url: UrlOption,
    since_days: Annotated[
        float | None, typer.Option(min=0, help="Only the last so many days.")
    ] = None,
) -> None:
    """Print the records, oldest first, one JSON object a line."""
    from safeswitch.serving.audit import Audit

    store = Audit(url)
    since = 0.0 if since_days is None else time.time() - since_days * _DAY_S
    for row in store.export(since=since):
        put_json(row)
    store.close()


def forget(
    url: UrlOption,
    days: Annotated[float, typer.Option(min=0, help="Keep the last so many days.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without, only say how many there are.")
    ] = False,
) -> None:
    """Delete records older than so many days."""
    from safeswitch.serving.audit import Audit

    store = Audit(url)
    before = time.time() - days * _DAY_S
    try:
        if yes:
            put(f"{store.forget(before=before)} records deleted")
        else:
            put(f"{store.count(before=before)} records are older; --yes deletes them")
    finally:
        store.close()


add(audit_app, export)
add(audit_app, forget)
