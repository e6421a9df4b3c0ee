"""Puts the report together: sections, tables and texts into one HTML file with everything in it.

``write_report`` is all that others need. Knows the page's template; knows nothing of models.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from safeswitch.bench.estimates import Table
from safeswitch.bench.log import Logged
from safeswitch.bench.outputs import NOTES, as_csv, cell, columns, folded
from safeswitch.bench.picture import check_drawable
from safeswitch.core.artifact import write_text
from safeswitch.core.json_types import JsonMapping
from safeswitch.report.gathered import Gathered, named
from safeswitch.report.pictures_landscape import landscape, visage_table
from safeswitch.report.pictures_prober import left_out, quality, reliability, roc, states, strips
from safeswitch.report.pictures_rates import ATTACK_TITLES, attacks, categories, paretos
from safeswitch.report.summary import TRIPWIRE, sentences, tiles
from safeswitch.report.svg import Plot

FILE = "report.html"
_OPEN = ("rates", "paired", "attacks", "visage")
_EXAMPLES = 3


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Args:
        anchor: For links.
        title: Heading.
        text: First paragraph.
        pictures: In order; None is left out.
        absent: What to do to have it, shown where there is no picture.
    """

    anchor: str
    title: str
    text: str
    pictures: Sequence[Plot | None]
    absent: str

    @property
    def shown(self) -> list[Plot]:
        """Pictures that there are."""
        return [p for p in self.pictures if p is not None]


def write_report(folder: Path) -> None:
    """Write ``report.html`` into a run folder, from what lies in it alone.

    Raises:
        ArtifactError: no run there, a damaged file, or the folder cannot be written.
        SafeSwitchError: matplotlib is not installed.
    """
    check_drawable()
    write_text(folder / FILE, render(Gathered.of(folder)))


def render(run: Gathered) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("safeswitch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(cell=cell, named=named, percent=lambda x: f"{100 * x:.0f} %")
    manifest = run.log.manifest
    tables = {**run.tables, **({"visage": visage_table(run)} if run.landscape else {})}
    return environment.get_template("report.html.j2").render(
        run=run,
        manifest=manifest,
        tiles=tiles(run),
        sentences=sentences(run),
        sections=_sections(run),
        tripwire=TRIPWIRE,
        strips=strips(run),
        examples=_examples(run),
        tables=[_table(name, table) for name, table in tables.items() if table],
        command=" ".join([Path(manifest["command"][0]).name, *manifest["command"][1:]])
        if manifest["command"]
        else "",
        style=_asset("style.css"),
        script=_asset("script.js"),
    )


def _asset(name: str) -> str:
    return (
        resources.files("safeswitch.report").joinpath("templates", name).read_text(encoding="utf-8")
    )


def _sections(run: Gathered) -> list[Section]:
    attacked = [p for metric in ATTACK_TITLES for p in attacks(run, metric)]
    return [
        Section(
            "safety", "Safety and usefulness", "What each method lets through, and what it costs in safe requests and tasks.",
            [*paretos(run), categories(run)], "No benchmark of this run has unsafe requests with verdicts.",
        ),
        Section(
            "probers", "The probers", f"How well the scores of {named(run.own)} tell requests apart, and where they read best.",
            [roc(run), reliability(run), *left_out(run), *quality(run), states(run)],
            "No stage scored both safe and unsafe requests here; it takes benchmarks of both and a method with a gate. For the "
            "maps run: safeswitch analyse.",
        ),
        Section(
            "attacks", "Under attack", TRIPWIRE, attacked, "No attacks in this run. To have them, run: safeswitch attack.",
        ),
        Section(
            "landscape", "Safety landscape", "How safety holds when weights are moved a little, as fine-tuning or "
            "quantisation move them (VISAGE, arXiv 2405.17374).", landscape(run),
            "Not surveyed in this run. To have it, run: safeswitch landscape --out with this folder.",
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class PageTable:
    """A table as the page shows it."""

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    csv: str
    opened: bool


def _table(name: str, table: Table) -> PageTable:
    shown = [folded(row) for row in table]
    header = columns(shown)
    data = base64.b64encode(as_csv(table).encode()).decode()
    rows: list[list[str]] = []
    for row in shown:
        rows.append([cell(row.get(column)) for column in header])
    title = {"visage": "VISAGE scores"}.get(name, name.replace("_", " "))
    return PageTable(
        name,
        title,
        NOTES.get(name, ""),
        header,
        rows,
        f"data:text/csv;base64,{data}",
        name in _OPEN,
    )


def _examples(run: Gathered) -> list[JsonMapping]:
    """For each benchmark a few requests that the method got wrong, or else any, with the replies of
    all methods."""
    found: list[JsonMapping] = []
    for benchmark in run.log.benchmarks:
        judge = run.log.judges(benchmark)[0]
        rows = [
            r
            for r in run.rows.of(run.own, benchmark)
            if r.reply is not None and judge in r.judgements
        ]
        wrong = [r for r in rows if _wrong(r, judge)]
        for row in (wrong or rows)[:_EXAMPLES]:
            replies = {
                m: _by_id(run.rows.of(m, benchmark), row.example.id) for m in run.log.methods
            }
            found.append(
                {"benchmark": benchmark, "row": row, "wrong": row in wrong, "replies": replies}
            )
    return found


def _wrong(row: Logged, judge: str) -> bool:
    verdict = row.judgements[judge]
    if verdict.correct is not None:
        return not verdict.correct
    return bool(verdict.complied if row.example.label == "unsafe" else verdict.refused)


def _by_id(rows: Sequence[Logged], name: str) -> Logged | None:
    return next((row for row in rows if row.example.id == name), None)
