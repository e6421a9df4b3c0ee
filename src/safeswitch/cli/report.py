"""``safeswitch report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.options import one_of
from safeswitch.cli.screen import put, put_markdown
from safeswitch.core.errors import DataError, check_choice


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of eval, compare or attack.")],
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Also print the main figures by category, language, length of the prompt, or "
            "position of the request in a long context; repeat for more.",
            autocompletion=one_of("category", "language", "length", "position"),
        ),
    ] = None,
) -> None:
    """Write report.html into a run folder, from its log, analyses and landscape."""
    from safeswitch.bench.slices import BY
    from safeswitch.report.page import FILE, write_report

    for name in by or ():
        check_choice("command line", "by", name, BY)
    tables = [_table(run, name) for name in by or ()]
    write_report(run)
    for table in tables:
        put_markdown(table)
    put(run / FILE)


def _table(run: Path, by: str) -> str:
    """Markdown of the main figures by one tag of the requests.

    Raises:
        ArtifactError: no run there.
        DataError: its requests are not told apart by it.
    """
    from safeswitch.bench.log import LoggedRows, RunLog
    from safeswitch.bench.outputs import as_markdown
    from safeswitch.bench.tables import sliced

    table = sliced(LoggedRows(RunLog.open(run)), by)
    if not table:
        raise DataError(
            f"--by {by}: no benchmark of {run} has requests with two values of it or more"
        )
    return as_markdown(by, table)
