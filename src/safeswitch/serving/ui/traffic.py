"""What the audit holds, counted for the page: traffic, what was flagged, drift, and the decisions
nearest to a threshold.

Knows nothing of HTTP or databases: rows come as :meth:`safeswitch.serving.audit.Audit.latest` gives
them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.data.traffic import with_product
from safeswitch.probers.drift import FEWEST, WINDOW, Histogram, exceeds

MOST_ROWS = 10_000
"""Newest records that are counted."""
_DAY, _HOUR = 86_400, 3_600
_BINS = 20
_NEAREST = 10


@dataclass(frozen=True)
class Decided:
    """A record, with the stage that settled it.

    Args:
        row: The record.
        stage: The stage that flagged it, or the one that came nearest to it.
        score: What that stage said; under the product rule the product.
        threshold: What it was held against.
    """

    row: JsonMapping
    stage: str
    score: float
    threshold: float

    @property
    def margin(self) -> float:
        """Score above the threshold; negative where the stage let the request pass."""
        return self.score - self.threshold

    def describe(self, texts: bool) -> JsonObject:
        """For the page; the request's text only where ``texts`` says so."""
        names = ("at", "request_id", "client", "bundle", "bundle_id", "policy", "category")
        found: JsonObject = {name: self.row.get(name) for name in names}
        found |= {"stage": self.stage, "score": self.score, "threshold": self.threshold}
        found["text"] = self.row.get("text") if texts else None
        found["text_sha256"] = self.row["text_sha256"]
        return found


def settled(row: JsonMapping) -> Decided | None:
    """The record with what settled it; None where no score is on record (an error, no gate).

    A request that passed was let through by stage 2 where that was asked, else by stage 1, and by
    the watch at its last reading: the one with the smallest distance counts.
    """
    scores, bars = json.loads(row["scores"]), json.loads(row["thresholds"])
    found = _held(scores, bars)
    if row["fired"]:
        own = [one for one in found if one[0] == row["stage"]]
    else:
        asked = "stage2" if "stage2" in scores else "stage1"
        own = [one for one in found if one[0] in (asked, "watch", "late")]
    if not own:
        return None
    return Decided(row, *min(own, key=lambda one: abs(one[1] - one[2])))


def _held(scores: Mapping[str, float], bars: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Stage, score and threshold of every stage that has both."""
    last = "stage2" if "stage2" in scores else "stage1"
    return [
        (last if name == "product" else name, score, bars[name])
        for name, score in with_product(scores, bars).items()
        if name in bars
    ]


def traffic(
    rows: Sequence[JsonMapping],
    calibration: Mapping[str, JsonMapping],
    bound: float,
    since: float,
    now: float,
    texts: bool,
) -> JsonObject:
    """The dashboard.

    Args:
        rows: Records, the newest first.
        calibration: Benign stage-1 scores of each bundle's calibration (see :class:`Histogram`).
        bound: Largest drift that raises no alarm.
        since: Unix seconds from which on rows are given.
        now: Unix seconds.
        texts: Whether requests' texts may be told.
    """
    flagged = [row for row in rows if row["fired"]]
    decided = [found for row in rows if (found := settled(row)) is not None]
    above = [one for one in decided if one.row["fired"]]
    below = [one for one in decided if not one.row["fired"]]
    return {
        "requests": len(rows),
        "flagged": len(flagged),
        "errors": sum(row["error"] is not None for row in rows),
        "whole": len(rows) < MOST_ROWS,
        "policies": dict(Counter(row["policy"] for row in rows)),
        "stages": dict(Counter(row["stage"] for row in flagged)),
        "categories": dict(Counter(row["category"] for row in flagged if row.get("category"))),
        "times": _times(rows, since, now),
        "scores": _scores(rows),
        "drift": _drift(rows, calibration, bound),
        "queue": _nearest(above, texts),
        "misses": _nearest(below, texts),
    }


def _times(rows: Sequence[JsonMapping], since: float, now: float) -> list[JsonObject]:
    """Requests and flagged ones by hour, over more than two days by day."""
    step = _HOUR if now - since <= 2 * _DAY else _DAY
    all_rows = Counter(int(row["at"] // step) for row in rows)
    flagged = Counter(int(row["at"] // step) for row in rows if row["fired"])
    first, last = int(since // step), int(now // step)
    found: list[JsonObject] = []
    for at in range(first, last + 1):
        found.append({"at": at * step, "requests": all_rows[at], "flagged": flagged[at]})
    return found


def _scores(rows: Sequence[JsonMapping]) -> list[JsonObject]:
    """Requests and flagged ones by stage-1 score, in equal bins of [0, 1]."""
    counts, flagged = [0] * _BINS, [0] * _BINS
    for row in rows:
        score = json.loads(row["scores"]).get("stage1")
        if score is None:
            continue
        place = min(int(score * _BINS), _BINS - 1)
        counts[place] += 1
        flagged[place] += bool(row["fired"])
    pairs = zip(counts, flagged, strict=True)
    return [
        {"from": i / _BINS, "requests": some, "flagged": hit} for i, (some, hit) in enumerate(pairs)
    ]


def _drift(
    rows: Sequence[JsonMapping], calibration: Mapping[str, JsonMapping], bound: float
) -> dict[str, JsonObject]:
    """Population stability index by bundle, of the newest stage-1 scores that did not fire, and
    whether the alarm of ``safeswitch_drift_exceeded`` would be raised for it."""
    found = {}
    for bundle, reference in calibration.items():
        scores: list[float] = []
        for row in rows:
            if row["bundle"] == bundle and not row["fired"] and len(scores) < WINDOW:
                score = json.loads(row["scores"]).get("stage1")
                scores += [] if score is None else [score]
        n = len(scores)
        psi = Histogram.parse(reference).psi(scores) if scores else None
        found[bundle] = {
            "psi": psi,
            "requests": n,
            "enough": n >= FEWEST,
            "bound": bound,
            "exceeded": psi is not None and exceeds(psi, n, bound),
        }
    return found


def _nearest(decided: Sequence[Decided], texts: bool) -> list[JsonObject]:
    nearest = sorted(decided, key=lambda one: abs(one.margin))[:_NEAREST]
    return [one.describe(texts) for one in nearest]
