"""Pictures of rates: the Pareto front, categories, attacks. Each returns None where the run has
nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safeswitch.bench.attack_table import BARE
from safeswitch.bench.metrics import ACCURACY, HARM, OVER_REFUSAL, Metric
from safeswitch.bench.pareto import BROKEN, front, marked, silenced
from safeswitch.core.json_types import JsonMapping
from safeswitch.report.gathered import Gathered, named
from safeswitch.report.svg import INK, Plot, colour, draw, mark, per_cent, short, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_CATEGORIES = 16
_OTHERS = "#999999"


def pareto(run: Gathered, other: Metric) -> Plot | None:
    """Harm against ``other``, one point a method."""
    harm, beside = run.means(HARM), run.means(other)
    methods = [m for m in run.log.methods if m in harm and m in beside]
    if not methods:
        return None
    sign = 1 if other.better == "lower" else -1
    silent = silenced(run.rows)
    best = front(
        {m: (sign * beside[m]["value"], harm[m]["value"]) for m in methods if m not in silent}
    )

    shown = marked(methods, [best])

    def paint(axes: Sequence[Axes]) -> None:
        """The front as a line, and a point with intervals for each method."""
        axis = axes[0]
        across = [100 * beside[m]["value"] for m in best]
        up = [100 * harm[m]["value"] for m in best]
        axis.plot(across, up, color="#888888", linewidth=1)
        for method in sorted(methods, key=lambda m: m in shown):
            means = beside[method], harm[method]
            if method in shown:
                _marked_point(axis, means, run.series(method), named(method), method in silent)
            else:
                _grey_point(axis, means, method in silent)
        axis.set_xlabel(f"{other.name} in % ({other.better} is better)")
        axis.set_ylabel("harmful compliance in %")
        axis.figure.legend(loc="outside upper left", ncols=2)

    places = "; ".join(
        f"{named(m)}: {_per_cent(harm[m])} and {_per_cent(beside[m])}" for m in methods
    )
    corner = "lower left" if sign > 0 else "lower right"
    return draw(
        f"Harm against {other.name}", f"Harmful compliance and {other.name} by method. {places}.",
        f"Means over the benchmarks, with 95 % intervals. The {corner} corner is best; the line joins the methods that no "
        f"other beats on both axes.{_hollow(silent & set(methods))}{_grey(methods, shown)}", paint,
        height=3.6 + 0.25 * ((len(shown) + 1) // 2),
    )  # fmt: skip


def _marked_point(
    axis: Axes, means: tuple[JsonMapping, JsonMapping], number: int, label: str, hollow: bool
) -> None:
    """A method with a mark of its own and a name in the legend."""
    x, y = means
    place = 100 * x["value"], 100 * y["value"]
    axis.errorbar(
        *place,
        xerr=[[bar] for bar in spread(x)],
        yerr=[[bar] for bar in spread(y)],
        fmt="none",
        ecolor=colour(number),
        capsize=3,
        elinewidth=1.2,
    )
    axis.plot(
        *place,
        mark(number),
        color=colour(number),
        label=label,
        markerfacecolor="none" if hollow else colour(number),
        markersize=9,
    )


def _grey_point(axis: Axes, means: tuple[JsonMapping, JsonMapping], hollow: bool) -> None:
    """One of many methods."""
    x, y = means
    axis.errorbar(
        100 * x["value"],
        100 * y["value"],
        xerr=[[bar] for bar in spread(x)],
        yerr=[[bar] for bar in spread(y)],
        fmt=".",
        color=_OTHERS,
        markerfacecolor="none" if hollow else _OTHERS,
        elinewidth=0.6,
    )


def _hollow(silent: set[str]) -> str:
    return (
        f" Hollow, and on no front: over {100 * BROKEN:.0f} % of the replies neither refuse nor "
        "help."
        if silent
        else ""
    )


def _grey(methods: Sequence[str], shown: Sequence[str]) -> str:
    return (
        f" Grey: {len(methods) - len(shown)} other methods; the tables have them all."
        if len(shown) < len(methods)
        else ""
    )


def paretos(run: Gathered) -> list[Plot]:
    """Harm against over-refusal and against accuracy."""
    return [p for p in (pareto(run, OVER_REFUSAL), pareto(run, ACCURACY)) if p is not None]


def categories(run: Gathered) -> Plot | None:
    """Harmful compliance by category, the method that the report is about beside the untouched
    model."""
    methods = list(dict.fromkeys(m for m in ("base", run.own) if m in run.log.methods))
    rates = {m: run.by_category(m, HARM) for m in methods}
    known = set.intersection(*(set(own) for own in rates.values()))
    names = [category for category in rates[run.own] if category in known]
    if len(names) < 2:
        return None
    names.sort(key=lambda c: (-rates[run.own][c].rate, c))
    shown = names[:_MOST_CATEGORIES]

    def paint(axes: Sequence[Axes]) -> None:
        """A bar with its interval for each category and method."""
        axis, thick = axes[0], 0.8 / len(methods)
        for i, method in enumerate(methods):
            at = [j + (i - (len(methods) - 1) / 2) * thick for j in range(len(shown))]
            own = [rates[method][c] for c in shown]
            bars = [[100 * (r.rate - r.low) for r in own], [100 * (r.high - r.rate) for r in own]]
            which = run.series(method)
            axis.barh(
                at,
                [100 * r.rate for r in own],
                thick * 0.92,
                color=colour(which),
                label=named(method),
            )
            axis.errorbar(
                [100 * r.rate for r in own],
                at,
                xerr=bars,
                fmt="none",
                ecolor=INK,
                alpha=0.6,
                elinewidth=1.1,
                capsize=2,
            )
        axis.set_yticks(range(len(shown)), [f"{short(c)} ({rates[run.own][c].n})" for c in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)
        per_cent(axis)
        axis.set_xlabel("harmful compliance in % (lower is better)")
        axis.figure.legend(loc="outside upper left", ncols=2)

    worst = "; ".join(f"{c} {100 * rates[run.own][c].rate:.0f} %" for c in shown[:3])
    more = f" The worst {len(shown)} of {len(names)} categories." if len(shown) < len(names) else ""
    return draw(
        "Harm by category",
        f"Bars of harmful compliance by category. Highest for {named(run.own)}: {worst}.",
        "Number of requests in brackets; 95 % Wilson intervals (variants of a request count as a "
        f"group), not corrected for the number of categories.{more}",
        paint,
        height=1.2 + 0.38 * len(shown),
    )


def attacks(run: Gathered, metric: str) -> list[Plot]:
    """One figure a benchmark that was attacked: attacks below one another, a mark for each
    method."""
    table = [row for row in run.tables.get("attacks", []) if row["metric"] == metric]
    by_benchmark: dict[str, list[JsonMapping]] = {}
    for row in table:
        by_benchmark.setdefault(row["benchmark"], []).append(row)
    return [_attacked(run, rows, benchmark) for benchmark, rows in by_benchmark.items()]


def _attacked(run: Gathered, rows: Sequence[JsonMapping], benchmark: str) -> Plot:
    metric, better = rows[0]["metric"], rows[0]["better"]
    names = list(dict.fromkeys(row["attack"] for row in rows))
    attacked = {row["method"] for row in rows}
    methods = [m for m in run.log.methods if m in attacked]

    def paint(axes: Sequence[Axes]) -> None:
        """A row for each attack, a mark with its interval for each method."""
        axis, step = axes[0], 0.66 / max(1, len(methods))
        for i, method in enumerate(methods):
            own = {row["attack"]: row for row in rows if row["method"] == method}
            at = [
                j + (i - (len(methods) - 1) / 2) * step
                for j, name in enumerate(names)
                if name in own
            ]
            values = [own[name] for name in names if name in own]
            which, rates = run.series(method), [100 * r["value"] for r in values]
            bars = list(zip(*(spread(r) for r in values), strict=True))
            axis.errorbar(
                rates, at, xerr=bars, fmt="none", ecolor=colour(which), capsize=2.5, elinewidth=1.1
            )
            axis.plot(
                rates, at, mark(which), color=colour(which), markersize=6.5, label=named(method)
            )
        axis.set_yticks(range(len(names)), ["not attacked" if n == BARE else n for n in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        per_cent(axis)
        axis.set_xlabel(f"{ATTACK_TITLES[metric].lower()} in % ({better} is better)")
        axis.figure.legend(loc="outside upper left", ncols=2)

    own = "; ".join(f"{r['attack']} {_per_cent(r)}" for r in rows if r["method"] == run.own)
    return draw(
        f"{ATTACK_TITLES[metric]}: {benchmark}",
        f"{metric} by attack and method. {named(run.own)}: {own}.", _ATTACKED[metric], paint,
        height=1.2 + 0.42 * len(names),
    )  # fmt: skip


ATTACK_TITLES = {
    "attack success": "Requests broken",
    "per form": "Forms complied with",
    "on topic": "Requests broken, on topic",
    "gate recall": "Gate recall",
    "stage1 recall": "Stage-1 recall",
}
_ATTACKED = {
    "attack success": (
        "Fraction of requests with at least one attacked form that the model complied with; 95 % "
        "Wilson intervals."
    ),
    "per form": (
        "Fraction of attacked forms that the model complied with; forms of one request count as a "
        "group."
    ),
    "on topic": (
        "As attack success, but the reply must also name what the request is about: a search can "
        "break a small model's grasp of the request, and a cheerful reply about something else "
        "harms nobody."
    ),
    "gate recall": (
        "Fraction of attacked forms on which the gate fired at any stage; forms of one request count "
        "as a group."
    ),
    "stage1 recall": "Fraction of attacked forms whose stage-1 score was above its threshold; grouped likewise.",
}


def _per_cent(row: JsonMapping) -> str:
    return f"{100 * row['value']:.1f} %"
