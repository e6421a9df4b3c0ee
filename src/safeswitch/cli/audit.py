"""``safeswitch audit``: the server's record of decisions, exported and cut short."""

from __future__ import annotations

from typing import Annotated

import typer

from safeswitch.cli.command import Group, add
from safeswitch.cli.screen import put, put_json

audit_app = typer.Typer(cls=Group, no_args_is_help=True, help="The server's record of decisions.")
UrlOption = Annotated[
    str,
    typer.Option("--url", help="SQLAlchemy URL of the audit database, as sqlite:///audit.db."),
]
SinceOption = Annotated[
    float | None, typer.Option("--since-days", min=0, help="Only the last so many days.")
]


def export(
    url: UrlOption,
    since_days: SinceOption = None,
) -> None:
    """Print the records, oldest first, one JSON object a line."""
    from safeswitch.serving.audit import Audit, days_ago

    store = Audit(url)
    for row in store.export(since=days_ago(since_days)):
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
    from safeswitch.serving.audit import Audit, days_ago

    store = Audit(url)
    before = days_ago(days)
    try:
        if yes:
            put(f"{store.forget(before=before)} records deleted")
        else:
            put(f"{store.count(before=before)} records are older; --yes deletes them")
    finally:
        store.close()


add(audit_app, export)
add(audit_app, forget)
