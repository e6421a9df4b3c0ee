"""What is made at the end of every run, from its folder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from safeswitch.bench.outputs import write_tables
from safeswitch.bench.pareto import draw_pareto
from safeswitch.report.page import write_report

AFTER: Sequence[Callable[[Path], None]] = (write_tables, draw_pareto, write_report)
"""Called in this order; each takes the run folder."""
