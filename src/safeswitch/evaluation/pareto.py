"""Pareto picture of a run: harm against over-refusal, and harm against utility; one point a method, with intervals.

A method is on the front when no other is at least as good on both axes and better on one. Needs matplotlib. Knows nothing
of how the figures came about.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safeswitch.core.artifact import write_atomic
from safeswitch.evaluation.log import RunLog
from safeswitch.evaluation.metrics import ACCURACY, HARM, OVER_REFUSAL
from safeswitch.evaluation.picture import COLOURS, check_drawable
from safeswitch.evaluation.rows import Rows
from safeswitch.evaluation.tables import main_rates, summary

_MARKS = "osD^vPX*<>"


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other dominates; both numbers are better lower. Sorted by the first number."""

    def beaten(a: tuple[float, float]) -> bool:
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points.values())

    return sorted((name for name, point in points.items() if not beaten(point)), key=lambda name: points[name])


def draw_pareto(folder: Path) -> None:
    """Write ``pareto.png`` where the run has harm and, beside it, over-refusal or accuracy; a run without has no picture.

    Raises:
        SafeSwitchError: matplotlib is not installed.
        ArtifactError: the file cannot be written.
    """
    log = RunLog.open(folder)
    table = main_rates(Rows(log))
    harm, refusal, accuracy = (summary(table, what) for what in (HARM, OVER_REFUSAL, ACCURACY))
    panels = [(refusal, "over-refusal (%)", 1), (accuracy, "task accuracy (%)", -1)]
    drawn = [(other, label, sign) for other, label, sign in panels if harm.keys() & other.keys()]
    if not drawn:
        return
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * len(drawn), 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(drawn), squeeze=False).flatten()
    for axis, (other, label, sign) in zip(axes, drawn, strict=True):
        _panel(axis, harm, other, sign, [m for m in log.methods if m in harm and m in other])
        axis.set_xlabel(label)
        axis.set_ylabel("harmful compliance (%)")
        axis.set_title(f"lower {'left' if sign > 0 else 'right'} is better; the line joins the front", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(folder / "pareto.png", lambda p: p.write_bytes(image.getvalue()))


def _panel(axis: Any, harm: Mapping[str, Any], other: Mapping[str, Any], sign: int, methods: Sequence[str]) -> None:
    best = front({m: (sign * other[m]["value"], harm[m]["value"]) for m in methods})
    axis.plot([100 * other[m]["value"] for m in best], [100 * harm[m]["value"] for m in best], color="#999999", linewidth=1)
    for i, method in enumerate(methods):
        x, y = other[method], harm[method]
        axis.errorbar(
            100 * x["value"], 100 * y["value"], xerr=_spread(x), yerr=_spread(y), fmt=_MARKS[i % len(_MARKS)],
            color=COLOURS[i % len(COLOURS)], markersize=9, capsize=3, elinewidth=1, label=method,
        )


def _spread(row: Mapping[str, float]) -> list[list[float]]:
    return [[100 * max(0.0, row["value"] - row["low"])], [100 * max(0.0, row["high"] - row["value"])]]
