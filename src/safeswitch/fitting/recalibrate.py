"""A new threshold for a fitted switch, from verdicts on what it flagged in real traffic.

What can be inferred. Verdicts are given on flagged requests alone, and mostly on those nearest to
the threshold: a biased sample of traffic. Raising a threshold can only shrink the set that is
flagged, so false alarms at any higher threshold are among requests that were flagged already, and
the fraction of *all* requests that they make is known without a label on the rest. That is why the
target is a fraction of requests, and why a threshold falls only where the caller says that what
passed was benign. Flagged requests without a verdict count by the fraction of false alarms among
reviewed ones of their score, under the assumption that this fraction does not rise with the score.
The interval makes no such assumption: its low end counts none of them, its high end all.

Knows scores and verdicts. Knows nothing of files and engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from safeswitch.core.errors import FitError, SettingError, check_choice, check_range
from safeswitch.core.json_types import JsonObject
from safeswitch.data.reviews import ReviewVerdict, counts
from safeswitch.data.traffic import FRONT, FlaggedText, Traffic
from safeswitch.probers.calibrate import safe_needed
from safeswitch.probers.drift import Histogram
from safeswitch.statistics.intervals import Interval, Rate, poisson_total, wilson
from safeswitch.switch.recalibrated import RECORD, REFIT
from safeswitch.switch.switch import Switch

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RecalibrationSettings:
    """How a threshold is set anew.

    Args:
        stage: Whose threshold moves: ``stage1``, ``stage2`` or ``product``; empty takes the first
            that the gate has.
        budget: Largest expected fraction of all requests that are false alarms of this stage; None
            takes the FPR budget that the switch was fitted with.
        max_shift: Furthest that the threshold may lie from where the fit set it, over all
            recalibrations since, in log-odds of the score (3: odds times 20). Whoever can give
            verdicts can move the threshold; this bounds how far.
        per_day: Requests a day for which false alarms are stated.
        passed_is_benign: Take every request that was not flagged for benign. Only then may the
            threshold fall.
    """

    stage: str = ""
    budget: float | None = None
    max_shift: float = 3.0
    per_day: float = 10_000
    passed_is_benign: bool = False

    def __post_init__(self) -> None:
        check_choice("RecalibrationSettings", "stage", self.stage, ("", *FRONT))
        if self.budget is not None:
            check_range("RecalibrationSettings", "budget", self.budget, 1e-6, 0.5)
        check_range("RecalibrationSettings", "max_shift", self.max_shift, 0.01, 10.0)
        check_range("RecalibrationSettings", "per_day", self.per_day, 1, 1e12)


@dataclass(frozen=True)
class Recalibration:
    """What was changed, and what it does.

    Args:
        stage: Whose threshold.
        before: The one that the traffic was decided by.
        after: The new one.
        wanted: The one that the budget asks for, before ``max_shift`` held it.
        settings: As given, with stage and budget filled in.
        parent: Fingerprint of the switch that was observed.
        requests: Recorded requests.
        days: Time that they span.
        flagged: Texts flagged.
        verdicts: Texts by verdict, and ``open`` without one.
        alarms_before: False alarms a day at ``per_day`` requests, with a 95 % interval.
        alarms_after: The same at the new threshold.
        right: Of the texts reviewed as rightly flagged, the fraction that still is; None without
            any.
        caught: Fraction of the unsafe validation requests of the fit above the threshold, each as
            lowest and highest possible value, before and after; None where the switch does not
            record them, or another stage was moved.
        elsewhere: Texts flagged by the watch or late, which no threshold here lets pass.
        left: Records that did not count, by reason.
    """

    stage: str
    before: float
    after: float
    wanted: float
    settings: RecalibrationSettings
    parent: str
    requests: int
    days: float
    flagged: int
    verdicts: Mapping[str, int]
    alarms_before: Interval
    alarms_after: Interval
    right: Rate | None
    caught: Mapping[str, tuple[float, float]] | None
    elsewhere: int
    left: Mapping[str, int]

    @property
    def held(self) -> bool:
        """Whether ``max_shift`` kept the threshold from where the budget wants it."""
        return not math.isclose(self.after, self.wanted, abs_tol=1e-12)

    def to_dict(self) -> JsonObject:
        """Plain JSON types."""
        return {**asdict(self), "held": self.held}


def recalibrate(
    switch: Switch,
    seen: Traffic,
    verdicts: Mapping[str, ReviewVerdict],
    settings: RecalibrationSettings | None = None,
    *,
    reviewers: Mapping[str, Mapping[str, int]] | None = None,
    reviews_hash: str = "",
    date: str = "",
) -> tuple[Switch, Recalibration]:
    """A switch with a new threshold, and what that does.

    Args:
        switch: The one that decided the traffic.
        seen: Its recorded decisions.
        verdicts: By text.
        settings: How.
        reviewers: How often each reviewer said what, for the record.
        reviews_hash: Of all verdicts that were read, for the record.
        date: Of today, for the record.

    Raises:
        SettingError: the gate has no threshold of that stage.
        FitError: no verdict that tells anything, a threshold that need not move, or one at which
            the switch would catch nothing.
    """
    chosen = _filled(switch, settings or RecalibrationSettings())
    rows = ReviewedRows.of(seen, verdicts, chosen)
    before = switch.gate.thresholds()[chosen.stage]
    wanted = rows.threshold(before, _allowed(float(chosen.budget or 0.0), seen.requests))
    after = _held(_origin(switch, chosen.stage, before), before, wanted, chosen.max_shift)
    _check_moves(before, after, wanted, chosen)
    found = _effect(switch, seen, verdicts, rows, chosen, wanted, after)
    _check_catches(found)
    entry = {
        **found.to_dict(),
        "reviewers": dict(reviewers or {}),
        "reviews_hash": reviews_hash,
        "date": date,
    }
    record = {**switch.record, RECORD: [*switch.record.get(RECORD, ()), entry]}
    gate = switch.gate.with_thresholds({chosen.stage: after})
    return replace(switch, gate=gate, record=record), found


def _effect(
    switch: Switch,
    seen: Traffic,
    verdicts: Mapping[str, ReviewVerdict],
    rows: ReviewedRows,
    chosen: RecalibrationSettings,
    wanted: float,
    after: float,
) -> Recalibration:
    """What moving the threshold to ``after`` does."""
    before = switch.gate.thresholds()[chosen.stage]
    return Recalibration(
        stage=chosen.stage,
        before=before,
        after=after,
        wanted=wanted,
        settings=chosen,
        parent=switch.fingerprint,
        requests=seen.requests,
        days=seen.days,
        flagged=len(seen.flagged),
        verdicts=verdict_counts(seen.flagged, verdicts),
        alarms_before=a_day(rows.alarms(before), seen.requests, chosen.per_day),
        alarms_after=a_day(rows.alarms(after), seen.requests, chosen.per_day),
        right=_kept(rows.right_above(before), rows.right_above(after)),
        caught=_caught(switch, chosen.stage, before, after),
        elsewhere=sum(math.isinf(one.at(chosen.stage)) for one in seen.flagged),
        left=dict(seen.left),
    )


def _kept(before: int, after: int) -> Rate | None:
    """Of the texts reviewed as rightly flagged, those that still are."""
    return wilson(after, before) if before else None


def _filled(switch: Switch, settings: RecalibrationSettings) -> RecalibrationSettings:
    """The settings with what the switch says where they say nothing."""
    have = [name for name in switch.gate.thresholds() if name in FRONT]
    if not have:
        raise SettingError(
            "recalibrate: the gate has no threshold that a request passes before its reply begins "
            f"({', '.join(FRONT)})"
        )
    stage = settings.stage or have[0]
    check_choice("recalibrate", "stage", stage, tuple(have))
    budget = settings.budget if settings.budget is not None else fitted_budget(switch)
    return replace(settings, stage=stage, budget=budget)


def fitted_budget(switch: Switch) -> float:
    """The FPR budget that a switch was fitted with."""
    return float((switch.record.get("settings") or {}).get("budget", 0.01))


def _allowed(budget: float, requests: int) -> float:
    """How many of the n recorded requests may be false alarms, so that the next request is one with
    probability at most ``budget``: ``budget * (n + 1) - 1`` (the rule of split conformal
    thresholds).

    Raises:
        FitError: fewer requests than the budget needs.
    """
    allowed = budget * (requests + 1) - 1
    if allowed < -1e-9:
        raise FitError(
            f"recalibrate: a budget of {budget:g} of all requests needs at least "
            f"{safe_needed(budget)} recorded ones; got {requests}"
        )
    return allowed


@dataclass(frozen=True, eq=False)
class ReviewedRows:
    """Texts as numbers, by falling score.

    Args:
        scores: ``[m]``; infinite where no threshold of the stage lets it pass.
        times: ``[m]`` records of each text.
        false: ``[m]`` how far it counts as a false alarm, in [0, 1].
        verdicts: Of each text; ``passed`` for one that was not flagged and is taken for benign,
            empty without a verdict.
    """

    scores: Array
    times: Array
    false: Array
    verdicts: Sequence[str]

    @classmethod
    def of(
        cls, seen: Traffic, verdicts: Mapping[str, ReviewVerdict], settings: RecalibrationSettings
    ) -> ReviewedRows:
        """Of recorded traffic and what reviewers said of it.

        Raises:
            FitError: no verdict says that anything was flagged wrongly.
        """
        scores = [one.at(settings.stage) for one in seen.flagged]
        times = [float(one.times) for one in seen.flagged]
        said: list[str] = [verdicts.get(one.text_sha256, "") for one in seen.flagged]
        if "false_alarm" not in said and not settings.passed_is_benign:
            raise FitError(
                "recalibrate: no flagged request has the verdict 'false_alarm' of all its "
                "reviewers, so nothing says that the threshold is too low; review first"
            )
        false = _fractions(np.asarray(scores), np.asarray(times), np.asarray(said))
        if settings.passed_is_benign:
            passed = [_reached(own, settings.stage, seen) for own in seen.passed]
            scores += passed
            times += [1.0] * len(passed)
            false = np.concatenate([false, np.ones(len(passed))])
            said += ["passed"] * len(passed)
        order = np.argsort(-np.asarray(scores), kind="stable")
        return cls(
            np.asarray(scores)[order],
            np.asarray(times)[order],
            false[order],
            [said[i] for i in order.tolist()],
        )

    def threshold(self, now: float, allowed: float) -> float:
        """The lowest threshold at which no more than ``allowed`` false alarms of this stage are
        expected; it falls below ``now`` only where it may."""
        lowest = -math.inf if "passed" in self.verdicts else now
        own = np.isfinite(self.scores)
        places = np.unique(np.append(self.scores[own], now))
        places = places[places >= max(lowest, 0.0)]
        weight = np.append(0.0, np.cumsum(np.where(own, self.times * self.false, 0.0)))
        above = np.searchsorted(-self.scores, -places, side="left")
        fits = places[weight[above] <= allowed]
        return float(fits[0]) if len(fits) else float(places[-1])

    def alarms(self, bar: float) -> Interval:
        """False alarms above ``bar`` in the recorded traffic; see the module text."""
        above = self.scores > bar
        certain = [said in ("false_alarm", "passed") for said in self.verdicts]
        unknown = [said in ("", "unsure") for said in self.verdicts]
        seen = self.times[above & np.asarray(certain)]
        whole = self.times[above & (np.asarray(certain) | np.asarray(unknown))]
        value = float((self.times * self.false)[above].sum())
        low, high = poisson_total(seen.tolist()).low, poisson_total(whole.tolist()).high
        return Interval(value, min(low, value), max(high, value), len(whole))

    def right_above(self, bar: float) -> int:
        """Texts with the verdict ``right`` above ``bar``."""
        pairs = zip(self.scores.tolist(), self.verdicts, strict=True)
        return sum(said == "right" and score > bar for score, said in pairs)


def _fractions(scores: Array, times: Array, said: NDArray[np.str_]) -> Array:
    """For each flagged text, the estimated probability that it is a false alarm. Texts that another
    stage flagged (of infinite score) are estimated by themselves."""
    false = np.ones(len(said))
    for group in (np.isfinite(scores), np.isinf(scores)):
        false[group] = _fractions_of(scores[group], times[group], said[group])
    return false


def _fractions_of(scores: Array, times: Array, said: NDArray[np.str_]) -> Array:
    """1 or 0 where a reviewer has decided. Otherwise the rate of false alarms at the nearest reviewed
    score below, from a curve that may only fall as the score rises (isotonic regression). Where
    nothing was reviewed, 1."""
    false: Array = (said == "false_alarm").astype(np.float64)
    known = (said == "false_alarm") | (said == "right")
    if not known.any():
        return np.ones(len(said))
    order = np.argsort(scores[known], kind="stable")
    places, truth, weights = scores[known][order], false[known][order], times[known][order]
    fitted = isotonic_regression(truth, weights=weights, increasing=False).x
    below = np.searchsorted(places, scores[~known], side="right") - 1
    false[~known] = fitted[np.clip(below, 0, None)]
    return false


def _reached(scores: Mapping[str, float], stage: str, seen: Traffic) -> float:
    """The score below which a threshold of ``stage`` would flag a request that passed; minus
    infinity where another stage holds it."""
    if stage == "stage1" and "stage2" in scores:
        return -math.inf  # stage 1 asked for stage 2, and that let it pass
    return scores.get(stage, -math.inf)


def _origin(switch: Switch, stage: str, now: float) -> float:
    """Where a fit set a threshold, before any recalibration of its scores."""
    start = now
    for entry in reversed(switch.record.get(RECORD, ())):
        if entry["stage"] != stage:
            continue
        if entry.get("kind") == REFIT:
            return start  # scores of before are another layer's
        start = float(entry["before"])
    return start


def _held(origin: float, before: float, wanted: float, max_shift: float) -> float:
    """``wanted``, or the furthest on the way there; never 0 or 1, where everything or nothing would
    be flagged."""
    # not the log-odds that Platt scaling reads, which end at 1e-4 from 0 and 1: thresholds lie closer
    odds = torch.logit(torch.tensor([origin, before, wanted], dtype=torch.float64), eps=1e-12)
    start, now, there = odds.tolist()
    if wanted == before or (abs(there - start) <= max_shift and 0.0 < wanted < 1.0):
        return wanted
    furthest = min(max(there, start - max_shift), start + max_shift)
    if (furthest - now) * (there - now) <= 0:
        return before
    return float(torch.sigmoid(torch.tensor(furthest, dtype=torch.float64)))


def _check_moves(
    before: float, after: float, wanted: float, settings: RecalibrationSettings
) -> None:
    """Refuse a recalibration that changes nothing.

    Raises:
        FitError: the budget is kept already, or the threshold may move no further.
    """
    if after != before:
        return
    if wanted == before:
        raise FitError(
            f"recalibrate: {settings.stage}'s threshold {before:.4f} already keeps false alarms "
            f"within the budget of {settings.budget:g} of all requests; nothing was changed (a "
            "smaller budget asks for more)"
        )
    raise FitError(
        f"recalibrate: {settings.stage}'s threshold {before:.4f} has moved by max_shift "
        f"{settings.max_shift:g} already, and the budget asks for {wanted:.4f}; fit again, or "
        "allow a larger shift"
    )


def a_day(found: Interval, requests: int, per_day: float) -> Interval:
    """How many a day, at ``per_day`` requests, of what was ``found`` among ``requests``."""
    scale = per_day / requests
    return Interval(found.value * scale, found.low * scale, found.high * scale, found.n)


def verdict_counts(
    flagged: Sequence[FlaggedText], verdicts: Mapping[str, ReviewVerdict]
) -> dict[str, int]:
    """Flagged texts by verdict, and ``open`` without one."""
    own = {
        one.text_sha256: verdicts[one.text_sha256] for one in flagged if one.text_sha256 in verdicts
    }
    return {**counts(own), "open": len(flagged) - len(own)}


def _caught(
    switch: Switch, stage: str, before: float, after: float
) -> dict[str, tuple[float, float]] | None:
    kept = (switch.record.get("calibration") or {}).get("unsafe_stage1")
    if stage != "stage1" or kept is None:
        return None
    unsafe = Histogram.parse(kept)
    return {"before": unsafe.above(before), "after": unsafe.above(after)}


def _check_catches(found: Recalibration) -> None:
    """Refuse a threshold at which nothing would be caught that is known to be unsafe.

    Raises:
        FitError: it would; the message says what the figures are.
    """
    if found.right is not None and found.right.rate == 0.0:
        raise FitError(
            f"recalibrate: at the threshold {found.after:.4f} none of the {found.right.n} requests "
            "reviewed as rightly flagged would be flagged any more; the readers do not tell them "
            "from false alarms: fit again with the reviewed requests (safeswitch data from-audit), "
            "or allow a larger budget"
        )
    if found.caught is not None and found.caught["after"][1] <= 0.0:
        raise FitError(
            f"recalibrate: no unsafe request of the fit's validation part scores above "
            f"{found.after:.4f}; that switch would catch nothing: allow a larger budget or a "
            "smaller max_shift"
        )
