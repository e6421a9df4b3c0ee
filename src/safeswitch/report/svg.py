"""Pictures as inline SVG that follow the page's theme: matplotlib draws, CSS variables colour.

Text stays text. Series are told apart by colour (Okabe and Ito's, safe for any colour vision) and
by mark. Knows nothing of what is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safeswitch.bench.picture import COLOURS
from safeswitch.core.json_types import JsonMapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MARKS = "osD^vPX*<>"
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#010203", "#010204"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)"}
_ALONE = {"var(--ink)": "#222222", "var(--faint)": "#8a8a8a"}
_ALONE_PX = 640
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 12.5, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": FAINT, "grid.alpha": 0.35, "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "axes.titlesize": 12.5, "axes.labelsize": 12, "xtick.labelsize": 11.5, "ytick.labelsize": 11.5, "legend.fontsize": 11.5,
    "legend.handlelength": 1.6, "legend.columnspacing": 1.2, "axes.facecolor": "none", "figure.facecolor": "none",
    "lines.linewidth": 1.8, "figure.dpi": 72,
}  # fmt: skip
WIDTH = 5.8
"""Inches of 72 points: a picture is 418 points wide, near a phone's width, so that its text is
never shrunk much."""


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Args:
        title: Heading.
        svg: Inline SVG.
        alt: What a reader who does not see it should know.
        caption: What is shown, and how to read it.
    """

    title: str
    svg: str = field(repr=False)
    alt: str
    caption: str

    def _repr_svg_(self) -> str:
        """The picture by itself, dark on white, as notebooks show it."""
        head = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{_ALONE_PX}" style="background: #ffffff; color: #222222"'
        )
        svg = self.svg.replace("<svg", head, 1)
        for variable, value in _ALONE.items():
            svg = svg.replace(variable, value)
        return svg


def draw(
    title: str,
    alt: str,
    caption: str,
    paint: Callable[[Sequence[Axes]], None],
    *,
    height: float = 3.6,
    panels: int = 1,
) -> Plot:
    """A picture of ``panels`` axes one above the other, painted by ``paint``."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = re.sub(r"\W", "", title)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(list(figure.subplots(panels, 1, squeeze=False).flatten()))
        text = io.StringIO()
        figure.savefig(
            text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return Plot(title, _themed(text.getvalue(), alt), alt, caption)


def _themed(svg: str, alt: str) -> str:
    """The ``svg`` element alone, with the page's colours, fonts and an accessible name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    head = re.search(r'viewBox="([^"]+)"', svg)
    box = head.group(1) if head else "0 0 418 260"
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r"<svg[^>]*>",
        f'<svg class="chart" viewBox="{box}" role="img" aria-label="{label}">',
        svg,
        count=1,
    )


def colour(i: int) -> str:
    """Of the i-th series."""
    return COLOURS[i % len(COLOURS)]


def mark(i: int) -> str:
    """Of the i-th series."""
    return MARKS[i % len(MARKS)]


def spread(row: JsonMapping) -> tuple[float, float]:
    """Error bars below and above a figure, in per cent."""
    return 100 * max(0.0, row["value"] - row["low"]), 100 * max(0.0, row["high"] - row["value"])


def per_cent(axis: Axes, which: str = "x") -> None:
    """A scale from 0 to 100."""
    limit, ticks = (
        (axis.set_xlim, axis.set_xticks) if which == "x" else (axis.set_ylim, axis.set_yticks)
    )
    limit(-3, 103)
    ticks([0, 25, 50, 75, 100])


def short(text: str, most: int = 22) -> str:
    """A label that fits beside an axis."""
    return text if len(text) <= most else text[: most - 1] + "…"
