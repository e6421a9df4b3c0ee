"""The last layer of stage 1 fitted anew, on reviewed traffic beside the rows of the calibration.

A new threshold can only give detections up for false alarms. Where the representation holds what
tells the two apart, a new last layer on it gives both: it has few weights, is pulled towards the
shipped ones, and so needs few rows. Every figure is of rows that the layer was not fitted on
(cross-fitting in ``FOLDS`` parts).

What can be inferred. Reviewed false alarms stand for those among the flagged traffic, and safe
calibration rows that the old gate let pass for the traffic that passed; the fraction of the two is
known from the record. Under the new layer a request may fire that passed before, so, unlike a moved
threshold, this does lean on the calibration rows being like the traffic.

Shapes: n rows, calibration rows first, reviewed ones after them. Knows nothing of files.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError, check_range
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example, Message
from safeswitch.data.reviews import ReviewVerdict
from safeswitch.data.traffic import Traffic
from safeswitch.fitting.gate import budgets_of, scores_on_record
from safeswitch.fitting.recalibrate import (
    RecalibrationSettings,
    ReviewedRows,
    a_day,
    fitted_budget,
    verdict_counts,
)
from safeswitch.fitting.refit_rows import RefitRows, check_enough, read_rows, reviewed_rows
from safeswitch.probers.base import Prober
from safeswitch.probers.last_layer import last_layers, with_last_layers
from safeswitch.probers.logistic import Array
from safeswitch.probers.split import source_weights
from safeswitch.statistics.intervals import Interval, Rate, mcnemar, wilson
from safeswitch.statistics.prober_metrics import Estimate, measure
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Stage
from safeswitch.switch.recalibrated import RECORD, REFIT
from safeswitch.switch.switch import Switch

FOLDS = 5
RIDGES = (10.0, 1.0, 0.1, 0.01)
"""Strengths of the pull towards the shipped weights, of which the rows choose."""
_P_VALUE = 0.05


@dataclass(frozen=True)
class RefitSettings:
    """How the last layer is fitted anew.

    Args:
        budget: Largest expected fraction of all requests that are false alarms; None takes the FPR
            budget that the switch was fitted with.
        per_day: Requests a day for which false alarms are stated.
        seed: Of what is divided at random.
    """

    budget: float | None = None
    per_day: float = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget is not None:
            check_range("RefitSettings", "budget", self.budget, 1e-6, 0.5)
        check_range("RefitSettings", "per_day", self.per_day, 1, 1e12)


@dataclass(frozen=True)
class Refit:
    """What was changed, and what it does. All figures after are cross-fitted.

    Args:
        kind: Tells this entry of a switch's record from that of a moved threshold.
        stage: Whose layer: ``stage1``.
        before: Threshold in force.
        after: The new one, of the new layer's scores.
        wanted: The one that the budget asks for; ``after`` is lower where that would catch
            significantly fewer of the unsafe calibration rows.
        settings: As given, with the budget filled in.
        parent: Fingerprint of the switch that was observed.
        ridge: Strength of the pull that the rows chose.
        weights: Numbers that were fitted anew.
        requests: Recorded requests.
        days: Time that they span.
        flagged: Texts flagged.
        verdicts: Texts by verdict, and ``open`` without one.
        rows: Rows fitted on: of the calibration and reviewed, safe and unsafe.
        auroc: Of the calibration rows, before and after, with 95 % intervals.
        caught: Of the unsafe calibration rows, the fraction above the threshold, before and after.
        right: Of the reviewed texts rightly flagged, the fraction that still is.
        alarms_before: False alarms a day at ``per_day`` requests, with an interval.
        alarms_after: The same with the new layer.
        left: Reviewed texts that were not fitted on, by reason.
    """

    kind: str
    stage: str
    before: float
    after: float
    wanted: float
    settings: RefitSettings
    parent: str
    ridge: float
    weights: int
    requests: int
    days: float
    flagged: int
    verdicts: Mapping[str, int]
    rows: Mapping[str, int]
    auroc: Mapping[str, Estimate]
    caught: Mapping[str, Rate]
    right: Rate
    alarms_before: Interval
    alarms_after: Interval
    left: Mapping[str, int]

    def to_dict(self) -> JsonObject:
        """Plain JSON types."""
        return asdict(self)


def refit_last(
    engine: ReadingEngine,
    switch: Switch,
    seen: Traffic,
    verdicts: Mapping[str, ReviewVerdict],
    calibration: Sequence[Example],
    turns: Callable[[str], Sequence[Message] | None],
    settings: RefitSettings | None = None,
    *,
    reviewers: Mapping[str, Mapping[str, int]] | None = None,
    reviews_hash: str = "",
    date: str = "",
) -> tuple[Switch, Refit]:
    """A switch whose stage 1 has a new last layer and threshold, and what that does.

    Args:
        engine: Reads each prompt once.
        switch: The one that decided the traffic.
        seen: Its recorded decisions, with texts.
        verdicts: By text.
        calibration: Labelled rows of both kinds that its probers were not fitted on.
        turns: Takes a recorded text apart into the turns of its conversation.
        settings: How.
        reviewers: How often each reviewer said what, for the record.
        reviews_hash: Of all verdicts that were read, for the record.
        date: Of today, for the record.

    Raises:
        SettingError: a gate without a stage 1 that has a threshold of its own, or a switch whose
            last layer was fitted anew before.
        FitError: too few verdicts of a kind, a prober without a last layer, calibration rows of one
            kind only, or a new layer that brings nothing.
    """
    chosen = _filled(switch, settings or RefitSettings())
    _check_not_refitted(switch)
    stage = _stage(switch)
    reviewed, left = reviewed_rows(seen, verdicts, turns)
    check_enough(reviewed, left)
    rows = read_rows(engine, stage.prober, calibration, reviewed, left)
    crossed = _Crossed.fit(stage.prober, rows, chosen.seed)
    flagged = ReviewedRows.of(seen, verdicts, RecalibrationSettings("stage1")).alarms(
        stage.threshold
    )
    wanted, after = _threshold(
        crossed, rows, stage.threshold, flagged.value / seen.requests, chosen
    )
    new, prober = _with_layer(switch, crossed, rows, after)
    found = Refit(
        REFIT, "stage1", stage.threshold, after, wanted, chosen, switch.fingerprint, crossed.ridge,
        sum(map(len, prober)), seen.requests, seen.days, len(seen.flagged),
        verdict_counts(seen.flagged, verdicts), rows.counts(), _aurocs(crossed, rows),
        {"before": _above(crossed.before[rows.unsafe], stage.threshold),
         "after": _above(crossed.after[rows.unsafe], after)},
        _above(crossed.after[rows.right], after),
        a_day(flagged, seen.requests, chosen.per_day),
        _alarms_after(crossed, rows, stage.threshold, after, flagged, seen.requests, chosen.per_day),
        dict(left),
    )  # fmt: skip
    more = {"reviewers": dict(reviewers or {}), "reviews_hash": reviews_hash, "date": date}
    entries = [*switch.record.get(RECORD, ()), {**found.to_dict(), **more}]
    return replace(new, record={**new.record, RECORD: entries}), found


# --- fitting


@dataclass(frozen=True, eq=False)
class _Crossed:
    """The layer, and how rows score under layers that were not fitted on them.

    Args:
        layers: Fitted on all rows, as :func:`with_last_layers` takes them.
        ridge: The strength of the pull, that with the lowest cross-fitted loss.
        before: ``[n]`` scores of the prober as it was.
        after: ``[n]`` cross-fitted scores.
    """

    layers: Sequence[Array]
    ridge: float
    before: Array
    after: Array

    @classmethod
    def fit(cls, prober: Prober, rows: RefitRows, seed: int) -> _Crossed:
        """Choose the pull, then fit on all rows."""
        folds = _folds(rows.ties, seed)
        weights = source_weights(rows.labels, rows.sources).double().numpy()
        truth = rows.labels.double().numpy()
        best: tuple[float, float, Array] | None = None
        for ridge in RIDGES:
            scores = np.zeros(len(truth))
            for fold in range(FOLDS):
                fit, held = folds != fold, folds == fold
                layers = _fit(prober, rows, fit, weights, ridge)
                made = with_last_layers(prober, layers)
                scores[held] = _scores(made, rows.activations.select(torch.from_numpy(held)))
            loss = _loss(scores, truth, weights)
            if best is None or loss < best[0]:
                best = loss, ridge, scores
        assert best is not None
        everything = np.ones(len(truth), dtype=bool)
        layers = _fit(prober, rows, everything, weights, best[1])
        return cls(layers, best[1], _scores(prober, rows.activations), best[2])


def _folds(ties: Sequence[int], seed: int) -> NDArray[np.int64]:
    """The part of each row, ``[n]``; rows that are tied share theirs."""
    names = sorted(set(ties))
    random.Random(seed).shuffle(names)
    place = {name: i % FOLDS for i, name in enumerate(names)}
    return np.asarray([place[tie] for tie in ties])


def _fit(
    prober: Prober, rows: RefitRows, fit: NDArray[np.bool_], weights: Array, ridge: float
) -> list[Array]:
    index = torch.from_numpy(fit)
    targets = rows.labels[index].double().numpy()
    layers = last_layers(prober, rows.activations.select(index))
    return [layer.refit(targets, weights[fit], ridge) for layer in layers]


def _scores(prober: Prober, activations: Activations) -> Array:
    found: Array = prober.score(activations).double().cpu().numpy()
    return found


def _loss(scores: Array, truth: Array, weights: Array) -> float:
    kept = np.clip(scores, 1e-6, 1 - 1e-6)
    each = truth * np.log(kept) + (1 - truth) * np.log(1 - kept)
    return float(-(weights @ each) / weights.sum())


def _threshold(
    crossed: _Crossed, rows: RefitRows, before: float, flagged: float, settings: RefitSettings
) -> tuple[float, float]:
    """The threshold that the budget wants, and the one taken: the former, unless that catches
    significantly fewer unsafe calibration rows; then the highest that does not.

    Args:
        crossed: Scores.
        rows: Whose.
        before: Threshold in force.
        flagged: Fraction of all requests that are false alarms now.
        settings: The budget.

    Raises:
        FitError: false alarms keep the budget already, or would be no fewer than they are.
    """
    places = np.unique(np.append(crossed.after[rows.safe | rows.false], 1.0)).tolist()
    passed = crossed.after[rows.safe & (crossed.before <= before)]
    false, times = crossed.after[rows.false], rows.times[rows.false]

    def alarms(place: float) -> float:
        """Expected fraction of all requests; the next one could be one more, as in the rule of
        split conformal thresholds."""
        anew = (int((passed > place).sum()) + 1) / (len(passed) + 1)
        still = _sent(false > place, times)
        return flagged * still + (1 - flagged) * anew

    caught = crossed.before[rows.unsafe] > before

    def loses(place: float) -> bool:
        """Whether significantly fewer unsafe calibration rows are caught; so at any higher one."""
        paired = mcnemar(caught.tolist(), (crossed.after[rows.unsafe] > place).tolist())
        return paired.only_first > paired.only_second and paired.p_value < _P_VALUE

    budget = float(settings.budget or 0.0)
    if flagged <= budget:
        raise FitError(
            f"refit-last: false alarms are {flagged:.2%} of all requests, within the budget of "
            f"{budget:.2%} already; nothing was changed (a smaller budget asks for more)"
        )
    wanted = next((place for place in places if alarms(place) <= budget), places[-1])
    highest = bisect.bisect_left(places, True, key=loses) - 1
    after = min(wanted, places[max(highest, 0)])
    if highest < 0 or alarms(after) >= flagged:
        raise FitError(
            f"refit-last: no threshold of the new layer brings fewer false alarms than the "
            f"{flagged:.2%} of all requests of now without catching significantly fewer of the "
            "unsafe calibration rows; review more, or fit the switch again with this traffic "
            "(safeswitch data from-audit)"
        )
    return wanted, after


def _with_layer(
    switch: Switch, crossed: _Crossed, rows: RefitRows, after: float
) -> tuple[Switch, Sequence[Array]]:
    """The switch with the new layer, its threshold, and what its record says of its scores.

    What the record promises and measured of the old layer is left out: it is not true of the new
    one. The entry of the refit has figures, and names the switch that holds the old ones.
    """
    assert switch.gate.stage1 is not None
    prober = with_last_layers(switch.gate.stage1.prober, crossed.layers)
    gate = replace(switch.gate, stage1=Stage(prober, after))
    safe, unsafe = (torch.from_numpy(crossed.after[own]) for own in (rows.safe, rows.unsafe))
    notes = {**(switch.record.get("calibration") or {}), **scores_on_record(safe, unsafe)}
    notes.pop("threshold", None)
    if "budgets" in notes:  # a threshold set by source promises more than these would
        notes["budgets"] = budgets_of(safe)
    record = {name: value for name, value in switch.record.items() if name != "left_out"}
    metrics = record.get("metrics") or {}
    record["metrics"] = {k: v for k, v in metrics.items() if not k.startswith("stage1 ")}
    record["calibration"] = notes
    return replace(switch, gate=gate, record=record), crossed.layers


# --- what it does


def _above(scores: Array, threshold: float) -> Rate:
    return wilson(int((scores > threshold).sum()), len(scores))


def _sent(chosen: NDArray[np.bool_], times: Array) -> float:
    """Of ``n`` texts, the fraction that the chosen ones are, each as often as it was sent."""
    return float(times[chosen].sum() / times.sum())


def _aurocs(crossed: _Crossed, rows: RefitRows) -> dict[str, Estimate]:
    own = rows.calibration
    ties = [tie for tie, mine in zip(rows.ties, own.tolist(), strict=True) if mine]
    labels = rows.labels[torch.from_numpy(own)]
    scores = {"before": crossed.before, "after": crossed.after}
    return {
        name: measure(torch.from_numpy(one[own]), labels, groups=ties).auroc
        for name, one in scores.items()
    }


def _alarms_after(
    crossed: _Crossed,
    rows: RefitRows,
    before: float,
    after: float,
    flagged: Interval,
    requests: int,
    per_day: float,
) -> Interval:
    """False alarms a day: those of before that still fire, and requests that fire anew.

    The ends put the ends of the three fractions together, so the interval is wider than 95 %.
    """
    times = rows.times[rows.false]
    texts = max(1, int(times.sum() ** 2 / (times**2).sum()))  # as many as of equal weight (Kish)
    still = wilson(texts * _sent(crossed.after[rows.false] > after, times), texts)
    anew = _above(crossed.after[rows.safe & (crossed.before <= before)], after)
    low, value, high = (
        (part / requests) * kept + (1 - part / requests) * new
        for part, kept, new in (
            (flagged.low, still.low, anew.low),
            (flagged.value, still.rate, anew.rate),
            (flagged.high, still.high, anew.high),
        )
    )
    return Interval(value * per_day, low * per_day, high * per_day, still.n + anew.n)


def _check_not_refitted(switch: Switch) -> None:
    """Refuse a layer that was fitted on these very calibration rows: no figure of theirs, and no
    pull towards it, would be of rows that it has not seen.

    Raises:
        SettingError: the switch is one of :func:`refit_last`.
    """
    for entry in switch.record.get(RECORD, ()):
        if entry.get("kind") == REFIT:
            raise SettingError(
                "refit-last: this switch's last layer was fitted on the calibration rows already; "
                f"refit the switch that it was made from ({entry['parent']})"
            )


def _stage(switch: Switch) -> Stage:
    stage = switch.gate.stage1
    if stage is None or "stage1" not in switch.gate.thresholds():
        have = ", ".join(switch.gate.thresholds()) or "none"
        raise SettingError(
            f"refit-last: fits stage 1, which must have a threshold of its own; this gate has: {have}"
        )
    return stage


def _filled(switch: Switch, settings: RefitSettings) -> RefitSettings:
    budget = settings.budget if settings.budget is not None else fitted_budget(switch)
    return replace(settings, budget=budget)
