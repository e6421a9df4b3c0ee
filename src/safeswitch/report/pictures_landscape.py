"""Pictures of the safety landscape: curves along random directions, and maps over two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.report.gathered import Gathered
from safeswitch.report.svg import DASHES, Plot, colour, draw, per_cent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WAYS = {("model", False): ("model, no gate", 0), ("model", True): ("model, gate", 3), ("head", True): ("refusal head", 1),
         ("probers", True): ("probers", 5)}  # fmt: skip


def landscape(run: Gathered) -> list[Plot]:
    """Curves of refusals and over-refusals, and maps; none where the landscape was not surveyed."""
    data = run.landscape
    if data is None:
        return []
    found = [
        _curves(
            data,
            "refused",
            "Safety landscape: unsafe requests refused",
            "unsafe requests refused in %",
        )
    ]
    if data["safe"]:
        found.append(
            _curves(
                data,
                "over_refused",
                "Safety landscape: safe requests refused",
                "safe requests refused in %",
            )
        )
    return [*found, *(_map(data, one) for one in data["maps"])]


def visage_table(run: Gathered) -> list[JsonObject]:
    """VISAGE by part and gate: mean over the directions, lowest and highest."""
    if run.landscape is None:
        return []
    table: list[JsonObject] = []
    for (part, gate), (name, _) in _WAYS.items():
        scores = [
            c["visage"] for c in run.landscape["curves"] if (c["part"], c["gate"]) == (part, gate)
        ]
        if scores:
            table.append(
                {
                    "moved": name,
                    "VISAGE": sum(scores) / len(scores),
                    "lowest": min(scores),
                    "highest": max(scores),
                    "directions": len(scores),
                }
            )
    return table


def _curves(data: JsonMapping, what: str, title: str, label: str) -> Plot:
    alt: list[str] = []
    lines = []
    for i, (way, (name, which)) in enumerate(_WAYS.items()):
        own = [c for c in data["curves"] if (c["part"], c["gate"]) == way]
        if own:
            grid = 100 * np.array([c[what] for c in own], dtype=float)
            lines.append((name, which, DASHES[i % 4], own[0]["distances"], grid))
            middle = grid.mean(0)
            alt.append(
                f"{name} {middle[len(middle) // 2]:.0f} % unmoved, "
                f"{middle[[0, -1]].mean():.0f} % at the ends"
            )

    def paint(axes: Sequence[Axes]) -> None:
        """A line for each part that was moved: the mean over directions, and a band from lowest to
        highest."""
        axis = axes[0]
        for name, which, dash, distances, grid in lines:
            axis.fill_between(
                distances, grid.min(0), grid.max(0), color=colour(which), alpha=0.15, linewidth=0
            )
            axis.plot(
                distances,
                grid.mean(0),
                color=colour(which),
                linestyle=dash,
                marker="o",
                markersize=3,
                label=name,
            )
        per_cent(axis, "y")
        axis.set_xlabel("distance along the direction")
        axis.set_ylabel(label)
        axis.figure.legend(loc="outside upper left", ncols=2)

    half = f" With {data['unsafe']} unsafe requests a point may be off by {100 * data['half_width']:.0f} points."
    return draw(
        title, f"{title}. {'; '.join(alt)}.",
        f"Weights moved along {data['plan']['directions']} random directions of their own size ({data['plan']['normalise']}-"
        f"normalised); line: mean, band: lowest to highest.{half if what == 'refused' else ''} Broken text is no refusal.",
        paint, height=3.9,
    )  # fmt: skip


def _map(data: JsonMapping, one: JsonMapping) -> Plot:
    grid, distances = 100 * np.array(one["refused"]), one["distances"]
    name = _WAYS[one["part"], one["gate"]][0]

    def paint(axes: Sequence[Axes]) -> None:
        """The grid in colours, with a cross at the unmoved model."""
        axis = axes[0]
        axis.grid(False)
        drawn = axis.pcolormesh(
            distances, distances, grid, cmap="cividis", vmin=0, vmax=100, shading="nearest"
        )
        for shade, thick in (("#000000", 4), ("#ffffff", 1.6)):
            axis.plot(0, 0, "+", color=shade, markersize=10, markeredgewidth=thick)
        axis.set_xlabel("distance along the first direction")
        axis.set_ylabel("along the second")
        axis.figure.colorbar(drawn, ax=axis, label="unsafe requests refused in %")

    middle = len(distances) // 2
    return draw(
        f"Landscape: {name}",
        f"Map of refusals over two directions, {name} moved: {grid[middle, middle]:.0f} % in the middle, "
        f"{grid.min():.0f} to {grid.max():.0f} % over the map.",
        f"Fraction of unsafe requests refused when weights ({name}) are moved in the plane of two random directions; "
        "the cross is the unmoved model.", paint, height=3.6,
    )  # fmt: skip
