"""The first screen: what the run says, in words and in four figures. Knows nothing of HTML."""

from __future__ import annotations

from dataclasses import dataclass

from safeswitch.bench.attack_table import BARE
from safeswitch.bench.metrics import ACCURACY, HARM, OVER_REFUSAL
from safeswitch.bench.table import FEW
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.report.gathered import Gathered, named

TRIPWIRE = (
    "A prober is a tripwire, not a wall: it catches requests that nobody shaped against it. "
    "Whoever holds the weights and can compute gradients through the model can search for a "
    "wording on which it stays silent."
)


@dataclass(frozen=True)
class Tile:
    """One large figure.

    Args:
        label: What it is.
        value: The figure, written out.
        interval: Its 95 % interval, written out.
        beside: What to hold it against.
    """

    label: str
    value: str
    interval: str
    beside: str


def tiles(run: Gathered) -> list[Tile]:
    """Harm, over-refusal, accuracy and cost of the method that the report is about."""
    found = []
    labels = (
        (HARM, "unsafe requests complied with"),
        (OVER_REFUSAL, "safe requests refused"),
        (ACCURACY, "tasks right"),
    )
    for what, label in labels:
        means = run.means(what)
        if run.own in means:
            row, other = means[run.own], means.get("base")
            beside = f"{named('base')}: {percent(other)}" if other and run.own != "base" else ""
            found.append(Tile(label, percent(row), interval(row), beside))
    extra = _extra_seconds(run)
    if extra is not None:
        seconds, base = extra
        beside = f"{named('base')}: {1000 * base:.0f} ms"
        found.append(
            Tile("extra time a request", f"{1000 * seconds:+.0f} ms", "mean, by the clock", beside)
        )
    return found


def sentences(run: Gathered) -> list[str]:
    """What the run says, in words, most important first."""
    lines = []
    for what, text in (
        (HARM, f"{_head(named(run.own))} complied with {{}} of unsafe requests"),
        (OVER_REFUSAL, "It refused {} of safe requests"),
        (ACCURACY, "It got {} of checkable tasks right"),
    ):
        means = run.means(what)
        if run.own in means:
            base = means.get("base") if run.own != "base" else None
            beside = f"; the {named('base')} {with_interval(base)}." if base is not None else "."
            lines.append(text.format(with_interval(means[run.own])) + beside)
    return lines + _rivals(run) + _attacks(run) + _missing(run)


def _rivals(run: Gathered) -> list[str]:
    """Where another method is better or worse than chance explains."""
    tests = [row for row in run.tables.get("paired", []) if row["against"] != "base"]
    if not tests:
        return []
    clear = [row for row in tests if row["p_holm"] < 0.05]
    rivals = list(dict.fromkeys(named(row["against"]) for row in tests))
    names = " and ".join(rivals) if len(rivals) <= FEW else f"{len(rivals)} other methods"
    if not clear:
        return [
            f"Against {names}: no difference on any benchmark is clear of chance (Holm-corrected p "
            "below 0.05)."
        ]
    better = sum((row["value"] < 0) == (row["better"] == "lower") for row in clear)
    return [
        f"Against {names}: better in {better} and worse in {len(clear) - better} of {len(tests)} "
        "paired tests that are clear of chance (Holm-corrected p below 0.05)."
    ]


def _attacks(run: Gathered) -> list[str]:
    rows = [row for row in run.tables.get("attacks", []) if row["method"] == run.own]
    if not rows:
        return []
    lines = []
    texts = {
        "attack success": "complied with {} of the attacked requests",
        "gate recall": "fired on only {} of them",
    }
    for metric, text in texts.items():
        of = [row for row in rows if row["metric"] == metric]
        bare = next((row for row in of if row["attack"] == BARE), None)
        worst = _worst(of)
        if worst is not None and bare is not None:
            lines.append(
                f"{text.format(with_interval(worst))} under {worst['attack']} (not attacked: "
                f"{percent(bare)})"
            )
    return [f"At its worst, {named(run.own)} {' and '.join(lines)}."] if lines else []


def _worst(rows: list[JsonObject]) -> JsonObject | None:
    attacked = [row for row in rows if row["attack"] != BARE]
    if not attacked:
        return None
    sign = 1 if attacked[0]["better"] == "lower" else -1
    return max(attacked, key=lambda row: sign * row["value"])


def _missing(run: Gathered) -> list[str]:
    gone = list(run.log.manifest["missing"])
    lines = []
    if gone:
        lines.append(
            f"Not at hand and missing here: {', '.join(gone)} ({len(gone)} of the suite's "
            "benchmarks)."
        )
    if not run.log.manifest.get("finished"):
        lines.append("This run is not finished: figures are of what has been answered so far.")
    return lines


def _extra_seconds(run: Gathered) -> tuple[float, float] | None:
    """Mean extra seconds a request over the bare benchmarks, and the untouched model's seconds."""
    rows = [
        r
        for r in run.tables.get("cost", [])
        if r["metric"] == "seconds" and r["benchmark"] in run.bare
    ]
    extra = [r["extra"] for r in rows if r["method"] == run.own and r["extra"] is not None]
    base = [r["value"] for r in rows if r["method"] == "base"]
    if not extra or not base:
        return None
    return sum(extra) / len(extra), sum(base) / len(base)


def percent(row: JsonMapping) -> str:
    """``12.3 %``."""
    return f"{100 * row['value']:.1f}\N{NO-BREAK SPACE}%"


def interval(row: JsonMapping) -> str:
    """``9.1 to 16.4 %``."""
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}\N{NO-BREAK SPACE}%"


def with_interval(row: JsonMapping) -> str:
    """``12.3 % (9.1 to 16.4 %)``."""
    return f"{percent(row)} ({interval(row)})"


def _head(text: str) -> str:
    return text[:1].upper() + text[1:]
