"""Pareto picture of a run: harm against over-refusal, and harm against utility; one point a method,
with intervals.

A method is on the front when no other is at least as good on both axes and better on one; methods
that break replies are drawn hollow and are on no front, for silence passes for safety. Needs
matplotlib. Knows nothing of how the figures came about.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safeswitch.bench.log import LoggedRows, RunLog
from safeswitch.bench.metrics import ACCURACY, HARM, NEITHER, OVER_REFUSAL
from safeswitch.bench.picture import COLOURS, check_drawable
from safeswitch.bench.table import FEW
from safeswitch.bench.tables import main_rates, rates, summary
from safeswitch.core.artifact import write_atomic
from safeswitch.core.json_types import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MARKS = "osD^vPX*<>"
ALWAYS = ("base", "prompt", "head", "safeswitch")
"""Where there are many methods, these and those on the front have marks of their own."""
BROKEN = 0.1
"""Fraction of replies that neither refuse nor help above which a method breaks replies."""


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other dominates; both numbers are better lower. Sorted by the
    first number.

    Examples:
        >>> front({"base": (0.5, 0.0), "prompt": (0.25, 0.25), "head": (0.25, 0.5)})
        ['prompt', 'base']
    """

    def beaten(a: tuple[float, float]) -> bool:
        return any(b[0] <= a[0] and b[1] <= a[1] and b != a for b in points.values())

    return sorted(
        (name for name, point in points.items() if not beaten(point)), key=lambda name: points[name]
    )


def silenced(rows: LoggedRows) -> set[str]:
    """Methods that break replies: the mean fraction that neither refuses nor helps is above
    :data:`BROKEN`."""
    main = {b: rows.log.judges(b)[0] for b in rows.log.benchmarks}
    broken = summary(
        [row for row in rates(rows) if row["judge"] == main.get(row["benchmark"])], NEITHER
    )
    return {m for m, row in broken.items() if row["value"] > BROKEN}


def marked(methods: Sequence[str], fronts: Sequence[Sequence[str]]) -> list[str]:
    """Methods that have a mark of their own: all where they are few, else :data:`ALWAYS` and those
    on a front."""
    on_a_front = {method for front in fronts for method in front}
    return [m for m in methods if len(methods) <= FEW or m in ALWAYS or m in on_a_front]


@dataclass(frozen=True)
class _Panel:
    """Harm against one other figure.

    Args:
        label: Of the other figure's axis.
        sign: 1 where lower is better, -1 where higher is.
        harm: Rows of harm by method.
        other: Rows of the other figure by method.
    """

    label: str
    sign: int
    harm: Mapping[str, JsonObject]
    other: Mapping[str, JsonObject]

    @property
    def points(self) -> dict[str, tuple[float, float]]:
        """Both figures of each method that has both, better lower."""
        found: dict[str, tuple[float, float]] = {}
        for method, row in self.harm.items():
            if method in self.other:
                found[method] = (self.sign * self.other[method]["value"], row["value"])
        return found

    def best(self, silent: set[str]) -> list[str]:
        """Methods on the front, from which the ``silent`` ones are left out."""
        return front({m: point for m, point in self.points.items() if m not in silent})


def draw_pareto(folder: Path) -> None:
    """Write ``pareto.png`` where the run has harm and, beside it, over-refusal or accuracy; a run
    without has no picture.

    Raises:
        SafeSwitchError: matplotlib is not installed.
        ArtifactError: the file cannot be written.
    """
    log = RunLog.open(folder)
    rows = LoggedRows(log)
    panels = _panels(rows)
    if not panels:
        return
    check_drawable()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    silent = silenced(rows)
    named = marked(log.methods, [panel.best(silent) for panel in panels])
    looks: dict[str, tuple[str, str]] = {}
    for i, method in enumerate(named):
        looks[method] = (_MARKS[i % len(_MARKS)], COLOURS[i % len(COLOURS)])
    height = 4.6 + 0.2 * (len(named) // 4 + 1)
    figure = Figure(figsize=(5.6 * len(panels), height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, looks, silent)
    grey = "; grey: other methods" if len(named) < len(log.methods) else ""
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
        title_fontsize=8,
        title=f"hollow: over {100 * BROKEN:.0f} % of replies neither refuse nor help{grey}",
    )
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(folder / "pareto.png", lambda p: p.write_bytes(image.getvalue()))


def _panels(rows: LoggedRows) -> list[_Panel]:
    """The panels for which the run has figures."""
    table = main_rates(rows)
    means = summary(table, HARM)
    harm = {method: means[method] for method in rows.log.methods if method in means}
    panels = (
        _Panel("over-refusal (%)", 1, harm, summary(table, OVER_REFUSAL)),
        _Panel("task accuracy (%)", -1, harm, summary(table, ACCURACY)),
    )
    return [panel for panel in panels if panel.points]


def _draw_panel(
    axis: Axes, panel: _Panel, looks: Mapping[str, tuple[str, str]], silent: set[str]
) -> None:
    """One panel: the line of the front, and a point for each method, those with a look of their own
    on top."""
    best = panel.best(silent)
    across = [100 * panel.other[method]["value"] for method in best]
    up = [100 * panel.harm[method]["value"] for method in best]
    axis.plot(across, up, color="#999999", linewidth=1)
    for method in sorted(panel.points, key=lambda m: m in looks):
        x, y = panel.other[method], panel.harm[method]
        _point(axis, method, x, y, looks.get(method), method in silent)
    axis.set_xlabel(panel.label)
    axis.set_ylabel("harmful compliance (%)")
    side = "left" if panel.sign > 0 else "right"
    axis.set_title(f"lower {side} is better; the line joins the front", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _point(
    axis: Axes,
    method: str,
    x: Mapping[str, float],
    y: Mapping[str, float],
    look: tuple[str, str] | None,
    hollow: bool,
) -> None:
    """A method's point with its intervals; without a look of its own, small and grey."""
    mark, colour = look or (".", "#bbbbbb")
    axis.errorbar(
        100 * x["value"],
        100 * y["value"],
        xerr=_spread(x),
        yerr=_spread(y),
        fmt=mark,
        color=colour,
        markerfacecolor="none" if hollow else colour,
        markersize=9 if look else 6,
        capsize=3 if look else 0,
        elinewidth=1 if look else 0.5,
        label=method if look else None,
    )


def _spread(row: Mapping[str, float]) -> list[list[float]]:
    return [
        [100 * max(0.0, row["value"] - row["low"])],
        [100 * max(0.0, row["high"] - row["value"])],
    ]
