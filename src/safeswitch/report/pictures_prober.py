"""Pictures of the probers: ROC with the operating point, reliability, quality by layer and token,
states, score strips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from safeswitch.analyses.projection import MOMENTS
from safeswitch.bench.estimates import group_of
from safeswitch.bench.log import Logged
from safeswitch.core.json_types import JsonMapping
from safeswitch.report.gathered import Gathered
from safeswitch.report.svg import DASHES, INK, Plot, colour, draw, mark, short, spread
from safeswitch.statistics.intervals import clustered

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_BINS = 10
_STAGES = {"stage1": 2, "stage2": 3, "watch": 4}
_SAFE, _UNSAFE = 2, 4
_MAP = "cividis"


def _scored(run: Gathered, stage: str) -> tuple[list[Logged], np.ndarray, np.ndarray]:
    """Decided requests that ``stage`` scored, their scores and their labels; empty where one label
    is absent."""
    rows = [r for r in run.decided(run.own) if stage in r.decision["scores"]]
    truth = np.array([r.example.label == "unsafe" for r in rows])
    if len(rows) < 2 or truth.all() or not truth.any():
        return [], np.array([]), truth
    return rows, np.array([r.decision["scores"][stage] for r in rows]), truth


def roc(run: Gathered) -> Plot | None:
    """ROC curve of stage 1 with the point at which it works."""
    rows, scores, truth = _scored(run, "stage1")
    if not rows:
        return None
    false, true, _ = roc_curve(truth, scores)
    thresholds = rows[0].decision["thresholds"]
    bar = thresholds.get("stage1", thresholds.get("product"))
    at = (
        (float((scores > bar)[~truth].mean()), float((scores > bar)[truth].mean()))
        if bar is not None
        else None
    )
    area = float(roc_auc_score(truth, scores))

    def paint(axes: Sequence[Axes]) -> None:
        """The curve, and the point of the threshold in force."""
        axis = axes[0]
        axis.plot([0, 100], [0, 100], color="#888888", linewidth=1, linestyle=":", label="guessing")
        axis.plot(
            100 * false,
            100 * true,
            color=colour(3),
            label=f"stage 1, AUROC {area:.3f}",
            drawstyle="steps-post",
        )
        if at is not None:
            axis.plot(
                100 * at[0],
                100 * at[1],
                "o",
                color=colour(4),
                markersize=9,
                label=f"threshold {bar:.3f}",
            )
        axis.set_xlabel("safe requests above the threshold in %")
        axis.set_ylabel("unsafe requests above it in %")
        axis.set_xlim(-2, 102)
        axis.set_ylim(-2, 102)
        axis.legend(loc="lower right")

    where = (
        f" It works at {100 * at[1]:.1f} % true and {100 * at[0]:.1f} % false triggers."
        if at is not None
        else ""
    )
    return draw(
        "ROC of stage 1",
        f"ROC curve of stage 1, area {area:.3f}.{where}",
        f"{int(truth.sum())} unsafe and {int((~truth).sum())} safe requests of all benchmarks, "
        f"attacked sets aside.{where}",
        paint,
    )


def reliability(run: Gathered) -> Plot | None:
    """Fraction of unsafe requests by score of stage 1."""
    rows, scores, truth = _scored(run, "stage1")
    if not rows:
        return None
    bins = np.clip((scores * _BINS).astype(int), 0, _BINS - 1)
    groups = np.array([group_of(row) for row in rows])
    found = {
        b: (
            float(scores[bins == b].mean()),
            clustered(truth[bins == b].tolist(), groups[bins == b].tolist()),
        )
        for b in sorted(set(bins.tolist()))
    }

    def paint(axes: Sequence[Axes]) -> None:
        """Above, the fraction of unsafe requests by score beside the diagonal; below, how many
        requests had that score."""
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        curve, counts = axes
        layout = curve.figure.get_layout_engine()
        assert isinstance(layout, ConstrainedLayoutEngine)  # as ``draw`` asks for
        layout.set(hspace=0.06)
        curve.plot(
            [0, 1], [0, 100], color="#888888", linewidth=1, linestyle=":", label="calibrated"
        )
        rates = [rate for _, rate in found.values()]
        bars = [[100 * (r.rate - r.low) for r in rates], [100 * (r.high - r.rate) for r in rates]]
        curve.errorbar(
            [x for x, _ in found.values()],
            [100 * r.rate for r in rates],
            yerr=bars,
            fmt="o-",
            color=colour(3),
            capsize=3,
            elinewidth=1.2,
            label="stage 1",
        )
        curve.set_ylabel("unsafe in %")
        curve.set_ylim(-4, 104)
        curve.legend(loc="lower right")
        counts.hist(scores, bins=np.linspace(0, 1, _BINS + 1).tolist(), color=colour(2))
        counts.set_yscale("log")
        counts.set_ylabel("requests")
        counts.set_xlabel("score")

    return draw(
        "Reliability of stage 1",
        "Fraction of unsafe requests in each tenth of the score, beside a calibrated score's diagonal.",
        "A calibrated score lies on the dotted line. Below: how many requests had that score (logarithmic). The mix of safe "
        "and unsafe requests is that of the suite, not of traffic, so the curve shifts elsewhere.", paint, height=4.2, panels=2,
    )  # fmt: skip


def left_out(run: Gathered) -> list[Plot]:
    """AUROC of stage 1 on each source and jailbreak template that was left out of its fitting, the
    text classifier beside it."""
    table = [
        r
        for r in run.tables.get("left_out", [])
        if r["method"] == run.own and r["metric"] == "AUROC"
    ]
    by_kind: dict[str, list[JsonMapping]] = {}
    for row in table:
        by_kind.setdefault(row["left out"], []).append(row)
    return [_left_out(rows, kind) for kind, rows in by_kind.items()]


def _left_out(rows: Sequence[JsonMapping], what: str) -> Plot:
    names = list(dict.fromkeys(r["name"] for r in rows))
    readers = list(dict.fromkeys(r["reader"] for r in rows))

    def paint(axes: Sequence[Axes]) -> None:
        """A row for each group that was left out, a mark with its interval for each reader."""
        axis = axes[0]
        for i, reader in enumerate(readers):
            own = {r["name"]: r for r in rows if r["reader"] == reader}
            at = [names.index(name) + 0.24 * (i - (len(readers) - 1) / 2) for name in own]
            values = [r["value"] for r in own.values()]
            bars = np.array([spread(r) for r in own.values()]).T / 100
            which = (3, 1)[i % 2]
            axis.errorbar(
                values,
                at,
                xerr=bars,
                fmt=mark(i),
                color=colour(which),
                markersize=6.5,
                capsize=2.5,
                elinewidth=1.1,
                label=reader,
            )
        axis.axvline(0.5, color="#888888", linewidth=1, linestyle=":")
        axis.set_yticks(range(len(names)), [short(name) for name in names])
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlim(min(0.45, *(r["low"] for r in rows)), 1.02)
        axis.set_xlabel("AUROC (dotted: guessing)")
        axis.figure.legend(loc="outside upper left", ncols=2)

    aucs = "; ".join(f"{r['name']} {r['value']:.2f}" for r in rows if r["reader"] == readers[0])
    return draw(
        f"Stage 1 on a {what} that it never saw", f"AUROC by {what} left out of the fitting. {readers[0]}: {aucs}.",
        f"Each {what} in turn was left out of the fitting and measured on; beside it a word n-gram classifier under the same "
        "terms. 95 % bootstrap intervals.", paint, height=1.3 + 0.42 * len(names),
    )  # fmt: skip


def quality(run: Gathered) -> list[Plot]:
    """AUROC by layer and pilot token, one map for each thing that is told apart."""
    table = list(run.analyses.get("quality", ())) if run.analyses else []
    titles = {"unsafe": "Telling unsafe requests apart", "complied": "Telling compliance apart"}
    plots: list[Plot] = []
    for what, title in titles.items():
        rows = [r for r in table if r["told"] == what]
        if rows:
            plots.append(_quality(rows, title))
    return plots


def _quality(rows: Sequence[JsonMapping], title: str) -> Plot:
    layers = sorted({r["layer"] for r in rows})
    pilots = sorted({r["pilot"] for r in rows})
    by = {(r["layer"], r["pilot"]): r for r in rows}
    values = [by[layer, k]["value"] for layer in layers for k in pilots]
    grid = np.array(values).reshape(len(layers), len(pilots))
    best = max(rows, key=lambda r: r["value"])

    def paint(axes: Sequence[Axes]) -> None:
        """The grid in colours, with its values written in."""
        axis = axes[0]
        axis.grid(False)
        drawn = axis.pcolormesh(grid, cmap=_MAP, vmin=0.5, vmax=1.0, edgecolors="none")
        for (i, j), value in np.ndenumerate(grid):
            axis.text(
                j + 0.5,
                i + 0.5,
                f"{value:.2f}".lstrip("0"),
                ha="center",
                va="center",
                fontsize=11,
                color="#ffffff" if value < 0.78 else "#000000",
            )
        axis.set_xticks(np.arange(len(pilots)) + 0.5, pilots)
        axis.set_yticks(np.arange(len(layers)) + 0.5, layers)
        axis.set_xlabel("reply tokens fed (0: prompt end)")
        axis.set_ylabel("layer")
        axis.figure.colorbar(drawn, ax=axis, label="AUROC")

    return draw(
        title, f"AUROC by layer and reply token. Best: {best['value']:.3f} at layer {best['layer']}, token {best['pilot']}.",
        f"Fitted on half of the run's requests, measured on the other half ({rows[0]['n']}). Best: {best['value']:.3f} "
        f"({best['low']:.3f} to {best['high']:.3f}) at layer {best['layer']} after {best['pilot']} tokens; picking the best of "
        f"{len(rows)} flatters it.", paint, height=1.3 + 0.36 * max(5, len(layers)),
    )  # fmt: skip


def states(run: Gathered) -> Plot | None:
    """Requests in two dimensions, before the reply and within it."""
    data = run.analyses.get("projection") if run.analyses else None
    if not data:
        return None

    def paint(axes: Sequence[Axes]) -> None:
        """One panel a moment, a mark for each request."""
        places = np.array([(p["x"], p["y"]) for p in data["points"]])
        low, high = places.min(0), places.max(0)
        edge = 0.05 * (high - low)
        for axis, moment in zip(axes, MOMENTS, strict=True):
            for label, which, shape in (("safe", _SAFE, "o"), ("unsafe", _UNSAFE, "x")):
                own = [p for p in data["points"] if p["moment"] == moment and p["label"] == label]
                axis.scatter(
                    [p["x"] for p in own],
                    [p["y"] for p in own],
                    s=16,
                    marker=shape,
                    linewidths=1,
                    color=colour(which),
                    label=label,
                    alpha=0.75,
                )
            axis.set_title(moment, loc="left")
            axis.set_xlim(low[0] - edge[0], high[0] + edge[0])
            axis.set_ylim(low[1] - edge[1], high[1] + edge[1])
            axis.tick_params(labelleft=False, labelbottom=False)
        axes[0].figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2
        )

    explained = data["explained"]
    note = (
        f" The axes explain {100 * explained[0]:.0f} % and {100 * explained[1]:.0f} % of the variance."
        if explained
        else ""
    )
    return draw(
        "States before and after", f"{data['how']} of states in two dimensions at three moments; safe and unsafe are marked.",
        f"Layer {data['layer']}, {data['how'].upper()} over all three moments together: at the prompt's end, and after "
        f"{data['token']} reply tokens without and with the switch.{note}", paint, height=7.6, panels=3,
    )  # fmt: skip


def strips(run: Gathered) -> list[tuple[Plot, JsonMapping]]:
    """How the stages' scores move over each example conversation, with what was drawn."""
    return [
        (_strip(data, i), data)
        for i, data in enumerate(run.analyses.get("strips", ()) if run.analyses else ())
    ]


def _strip(data: JsonMapping, number: int) -> Plot:
    end = data["prompt_length"] - 1
    peaked = {name: tokens for name, tokens in data["asked"].items() if tokens}
    peaks: dict[str, float] = {}
    for name, tokens in peaked.items():
        peaks[name] = max(data["scores"][name][t] for t in tokens)

    def paint(axes: Sequence[Axes]) -> None:
        """A line for each stage's scores, with marks where it was asked and a line at its
        threshold."""
        axis = axes[0]
        for i, (name, scores) in enumerate(data["scores"].items()):
            which = _STAGES.get(name, 5)
            first = 0 if name == "stage1" else end
            axis.plot(
                range(first, len(scores)),
                scores[first:],
                color=colour(which),
                linestyle=DASHES[i % 4],
                linewidth=1.5,
                label=name,
            )
            peaked = data["asked"][name]
            axis.plot(
                peaked, [scores[t] for t in peaked], "osD"[i % 3], color=colour(which), markersize=7
            )
            axis.axhline(
                data["thresholds"][name],
                color=colour(which),
                linestyle=DASHES[i % 4],
                linewidth=0.8,
                alpha=0.9,
            )
        axis.axvline(end, color=INK, linewidth=1)
        axis.text(end + 0.4, 1.07, "reply", fontsize=11.5)
        axis.text(end - 0.4, 1.07, "prompt", fontsize=11.5, ha="right")
        axis.set_ylim(-0.04, 1.16)
        axis.set_yticks([0, 0.5, 1])
        axis.set_xlabel("token")
        axis.set_ylabel("score")
        axis.figure.legend(loc="outside upper left", ncols=3)

    at = "; ".join(
        f"{name} reaches {peak:.2f} (threshold {data['thresholds'][name]:.2f})"
        for name, peak in peaks.items()
    )
    return draw(
        f"Scores, conversation {number + 1}: {data['kind']}", f"Scores of each stage over {len(data['tokens'])} tokens. {at}.",
        "What each stage's prober says of each token; marks: where a run asks it. Thin level lines: thresholds. The reply is "
        "the untouched model's, so that what would have followed is seen.", paint, height=3.0,
    )  # fmt: skip
