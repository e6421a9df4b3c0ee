"""What the report is made from: the log's rows and tables, and, where they were made, analyses and
landscape.

Knows files. Knows nothing of HTML or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safeswitch.analyses.landscape.survey import FILE as LANDSCAPE
from safeswitch.analyses.landscape.survey import FORMAT_VERSION as LANDSCAPE_VERSION
from safeswitch.analyses.run import FILE as ANALYSES
from safeswitch.analyses.run import FORMAT_VERSION as ANALYSES_VERSION
from safeswitch.bench.attack_table import attacked_set
from safeswitch.bench.estimates import Table, belongs
from safeswitch.bench.log import Logged, LoggedRows, RunLog
from safeswitch.bench.metrics import Metric, outcomes
from safeswitch.bench.tables import main_rates, make_tables, reference, summary
from safeswitch.core.artifact import read_json
from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.statistics.intervals import Rate, clustered

NAMES: Mapping[str, str] = {
    "base": "untouched model",
    "prompt": "safety prompt",
    "head": "head always on",
    "safeswitch": "SafeSwitch",
}
"""Methods as a reader knows them; others keep their name."""
_BESIDE = {ANALYSES: ANALYSES_VERSION, LANDSCAPE: LANDSCAPE_VERSION}


@dataclass(frozen=True, eq=False)
class Gathered:
    """One run, read once.

    Args:
        log: The run folder.
        rows: Its rows.
        tables: All tables by name.
        analyses: What ``safeswitch analyse`` wrote, None where it did not run.
        landscape: What ``safeswitch landscape`` wrote, None where it did not run.
    """

    log: RunLog
    rows: LoggedRows
    tables: Mapping[str, Table]
    analyses: JsonMapping | None
    landscape: JsonMapping | None

    @classmethod
    def of(cls, folder: Path) -> Gathered:
        """Read a run folder.

        Raises:
            ArtifactError: no run there, or a damaged file.
        """
        log = RunLog.open(folder)
        rows = LoggedRows(log)
        beside = {name: _read(folder / name, version) for name, version in _BESIDE.items()}
        return cls(log, rows, make_tables(rows), beside[ANALYSES], beside[LANDSCAPE])

    @property
    def own(self) -> str:
        """The method that the report is about."""
        return reference(self.log)

    @property
    def bare(self) -> list[str]:
        """Benchmarks that are not attacked sets."""
        return [b for b in self.log.benchmarks if not attacked_set(b)]

    def series(self, method: str) -> int:
        """Number of a method's colour and mark: the same in every report for those that ``NAMES``
        knows."""
        known = list(NAMES)
        others = [m for m in self.log.methods if m not in known]
        return known.index(method) if method in known else len(known) + others.index(method)

    def means(self, what: Metric) -> dict[str, JsonObject]:
        """By method, the mean of ``what`` over the benchmarks that have it, by the judge that
        counts."""
        return summary(main_rates(self.rows), what)

    def decided(self, method: str) -> list[Logged]:
        """All labelled requests of the bare benchmarks that the gate of ``method`` decided on."""
        return [
            r for b in self.bare for r in self.rows.of(method, b) if r.decision and r.example.label
        ]

    def by_category(self, method: str, what: Metric) -> dict[str, Rate]:
        """Rates over the bare benchmarks' requests by category."""
        hits_of: dict[str, list[bool]] = {}
        groups_of: dict[str, list[str]] = {}
        for benchmark in self.bare:
            logged = self.rows.of(method, benchmark)
            hits = outcomes(logged, self.log.judges(benchmark)[0], what)
            for row in logged:
                category = row.example.category
                if row.example.id in hits and category:
                    hits_of.setdefault(category, []).append(hits[row.example.id])
                    groups_of.setdefault(category, []).append(belongs(benchmark, row))
        return {c: clustered(own, groups_of[c]) for c, own in hits_of.items()}


def _read(path: Path, version: int) -> JsonObject | None:
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format_version") != version:
        got = content.get("format_version")
        raise ArtifactError(
            f"{path}: format version {got!r} is not supported; this library reads {version}"
        )
    return content


def named(method: str) -> str:
    """A method's name for readers."""
    return NAMES.get(method, method)
