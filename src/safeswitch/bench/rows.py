"""All rows of a run, read once. Knows nothing of what is counted on them."""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.log import Logged, RunLog


class Rows:
    """The log's rows, read once."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self._rows = {(m, b): log.rows(m, b) for m in log.methods for b in log.benchmarks}

    def of(self, method: str, benchmark: str) -> list[Logged]:
        return self._rows[method, benchmark]

    def each(self) -> Iterator[tuple[str, str, list[Logged]]]:
        """Benchmark, method and rows, the benchmarks in the suite's order."""
        for benchmark in self.log.benchmarks:
            for method in self.log.methods:
                yield benchmark, method, self._rows[method, benchmark]
