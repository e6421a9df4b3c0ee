"""One picture of several methods on several suites: rates with intervals, small multiples.

Needs matplotlib (``pip install "safeswitch[eval]"``). Knows nothing of how the figures came about.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safeswitch.bench.estimates import Table
from safeswitch.core.artifact import write_atomic
from safeswitch.core.errors import DataError, SafeSwitchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's colours, told apart with any colour vision, with hatching as a second sign.
COLOURS = ("#7f7f7f", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
_HATCHES = ("", "//", "..", "", "xx", "++")


def check_drawable() -> None:
    """Fail early where matplotlib is missing, before the work whose picture it shall draw.

    Raises:
        SafeSwitchError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SafeSwitchError('pictures need matplotlib: pip install "safeswitch[eval]"')


def draw_rates(
    rates: Table, path: Path, *, titles: Mapping[str, str] | None = None, columns: int = 4
) -> None:
    """Write a PNG with one panel a benchmark and metric and one bar a method.

    Args:
        rates: Rows as of :func:`safeswitch.bench.tables.main_rates`.
        path: The PNG.
        titles: What benchmarks and methods are called, where not by their names.
        columns: Panels side by side.

    Raises:
        DataError: no rates.
        SafeSwitchError: matplotlib is not installed.
        ArtifactError: the file cannot be written.
    """
    if not rates:
        raise DataError("draw_rates: there are no results to show")
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = titles or {}
    panels: dict[tuple[str, str], Table] = {}
    for row in rates:
        panels.setdefault((row["benchmark"], row["metric"]), []).append(row)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.3 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for i, ((benchmark, metric), bars) in enumerate(panels.items()):
        title = f"{names.get(benchmark, benchmark)}\n{metric} – {bars[0]['better']} is better"
        _draw_panel(axes[i], title, bars, names)
        axes[i].set_ylabel("%" if i % columns == 0 else "")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, lambda p: p.write_bytes(image.getvalue()))


def _draw_panel(axis: Axes, title: str, bars: Table, names: Mapping[str, str]) -> None:
    """A bar with its interval for each method."""
    for i, bar in enumerate(bars):
        value, low, high = (100 * bar[name] for name in ("value", "low", "high"))
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.bar(
            i,
            value,
            0.72,
            color=COLOURS[i % 6],
            hatch=_HATCHES[i % 6],
            edgecolor="white",
            label=bar["method"],
        )
        axis.errorbar(i, value, yerr=spread, color="black", capsize=3, linewidth=1)
        axis.text(i, min(high + 2, 103), f"{value:.0f}", ha="center", va="bottom", fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.set_ylim(0, 112)
    axis.set_yticks([0, 25, 50, 75, 100])
    methods = [names.get(bar["method"], bar["method"]) for bar in bars]
    axis.set_xticks(range(len(bars)), methods, rotation=20, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
