"""What a switch flagged in real traffic, as one HTML page without scripts. Knows nothing of
databases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from safeswitch.core.artifact import write_text
from safeswitch.core.json_types import JsonMapping
from safeswitch.data.traffic import Traffic


def write_review_page(path: Path, rows: Sequence[JsonMapping], seen: Traffic) -> None:
    """Write ``rows`` (see :meth:`FlaggedText.to_dict`, with ``verdict``) as a page.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("safeswitch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = resources.files("safeswitch.report").joinpath("templates/style.css").read_text("utf-8")
    page = environment.get_template("review.html.j2").render(
        rows=rows, seen=seen, style=style, day=_day
    )
    write_text(path, page)


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
