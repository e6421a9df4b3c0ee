"""``safeswitch report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.screen import put


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of eval, compare or attack.")],
) -> None:
    """Write report.html into a run folder, from its log, analyses and landscape."""
    from safeswitch.evaluation.report.page import FILE, write_report

    write_report(run)
    put(run / FILE)
