"""Prometheus metrics of the guard; the server's own ``/metrics`` shows them beside its others."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Decision
from safeswitch.probers.drift import WINDOW, exceeds
from safeswitch.probers.drift import Histogram as Scores

_TWENTIETHS = tuple(i / 20 for i in range(21))
REQUESTS = Counter("safeswitch_requests", "Decided choices", ("bundle", "policy", "stage", "fired"))
SCORES = Histogram("safeswitch_score", "Score of a stage", ("bundle", "stage"), buckets=_TWENTIETHS)
FLAGGED = Counter(
    "safeswitch_flagged",
    "Choices on which the gate fired, by likeliest kind of harm and what was done",
    ("bundle", "policy", "category", "severity", "act"),
)
LATENCY = Histogram(
    "safeswitch_latency_seconds",
    "Time spent reading and scoring one request",
    ("bundle",),
    buckets=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0),
)
DISCARDED = Counter(
    "safeswitch_discarded_tokens", "Reply tokens that were written and never shown", ("bundle",)
)
ERRORS = Counter(
    "safeswitch_prober_errors", "Decisions on which a prober could not run", ("bundle",)
)
POLICY_FAULT = Gauge(
    "safeswitch_policy_fault",
    "1 while the policy file has changed to one that cannot be used, and the old one is in force",
)
RESPONSES = Counter("safeswitch_responses", "Answers to POST requests, by HTTP status", ("status",))
FIRST_TEXT = Histogram(
    "safeswitch_first_text_seconds",
    "Time from a request's admission to the first text of its stream",
    buckets=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)
AUDIT_DOWN = Gauge("safeswitch_audit_down", "1 while the audit database cannot be written")
AUDIT_WAITING = Gauge(
    "safeswitch_audit_waiting_records", "Records in the buffer that wait for the audit database"
)
AUDIT_DAMAGED = Counter(
    "safeswitch_audit_damaged_records",
    "Records that the audit database refused, kept in the buffer",
)
AUDIT_LOST = Counter(
    "safeswitch_audit_unrecorded",
    "Decisions that could be kept nowhere; their replies did not leave",
)

DRIFT = Gauge(
    "safeswitch_drift_psi", "Population stability index of stage-1 scores of requests that did not fire, against calibration",
    ("bundle",),
)  # fmt: skip
DRIFT_N = Gauge("safeswitch_drift_requests", "Requests in that index", ("bundle",))
DRIFTED = Gauge(
    "safeswitch_drift_exceeded",
    "1 while that index lies above its bound (safeswitch serve --drift-bound)",
    ("bundle",),
)
_EVERY = 50
_log = logging.getLogger("safeswitch.server")


@dataclass
class _Recent:
    """Scores of one bundle's latest requests.

    Args:
        reference: What they are held against.
        bound: Largest index that is no alarm.
        scores: The latest.
        seen: How many there were in all.
        beyond: Whether the last index lay above the bound.
    """

    reference: Scores
    bound: float
    scores: deque[float]
    seen: int = 0
    beyond: bool = False


_recent: dict[str, _Recent] = {}
_lock = threading.Lock()


def calibrated_on(calibration: Mapping[str, JsonMapping], bound: float) -> None:
    """Measure drift against these calibration scores, by bundle
    (:class:`safeswitch.probers.drift.Histogram`); an index above ``bound`` raises
    ``safeswitch_drift_exceeded`` and one line in the log."""
    with _lock:
        _recent.clear()
        for name, found in calibration.items():
            _recent[name] = _Recent(Scores.parse(found), bound, deque(maxlen=WINDOW))
            DRIFTED.labels(name).set(0)


def _drift(bundle: str, score: float) -> None:
    with _lock:
        recent = _recent.get(bundle)
        if recent is None:
            return
        recent.scores.append(score)
        recent.seen += 1
        DRIFT_N.labels(bundle).set(len(recent.scores))
        if recent.seen % _EVERY == 0:
            index = recent.reference.psi(recent.scores)
            DRIFT.labels(bundle).set(index)
            _hold_against_bound(bundle, recent, index)


def _hold_against_bound(bundle: str, recent: _Recent, index: float) -> None:
    """Say once that the bound is passed, and once that it is kept again."""
    beyond = exceeds(index, len(recent.scores), recent.bound)
    DRIFTED.labels(bundle).set(beyond)
    if beyond and not recent.beyond:
        _log.warning(
            "drift: the scores of %s have moved away from its calibration (index %.2f over %d "
            "requests, bound %.2f), so its false alarms are no longer those of its budget; look at "
            "what it flags (safeswitch review), set the threshold anew (safeswitch recalibrate), "
            "or fit again with this traffic (safeswitch data from-audit)",
            bundle,
            index,
            len(recent.scores),
            recent.bound,
        )
    elif recent.beyond and not beyond:
        _log.warning("drift: the scores of %s are within the bound again", bundle)
    recent.beyond = beyond


def count(decision: Decision, bundle: str, policy: str) -> None:
    """Count one decision."""
    REQUESTS.labels(bundle, policy, decision.stage, str(decision.fired).lower()).inc()
    if decision.fired:
        act = decision.act or ("refuse" if policy == "enforce" else "log")
        category, severity = decision.category or "unknown", decision.severity or "unknown"
        FLAGGED.labels(bundle, policy, category, severity, act).inc()
    LATENCY.labels(bundle).observe(decision.latency_s)
    for stage, score in decision.scores.items():
        SCORES.labels(bundle, stage).observe(score)
    if "stage1" in decision.scores and not decision.fired:
        _drift(bundle, decision.scores["stage1"])
    if decision.actuator != "none" and decision.fired and policy == "enforce":
        DISCARDED.labels(bundle).inc(decision.token_index)
    if decision.error is not None:
        ERRORS.labels(bundle).inc()
