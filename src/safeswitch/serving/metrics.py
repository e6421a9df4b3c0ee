"""Prometheus metrics of the guard; the server's own ``/metrics`` shows them beside its others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Decision
from safeswitch.probers.drift import Histogram as Scores

_SHARES = tuple(i / 20 for i in range(21))
REQUESTS = Counter("safeswitch_requests", "Decided choices", ("bundle", "policy", "stage", "fired"))
SCORES = Histogram("safeswitch_score", "Score of a stage", ("bundle", "stage"), buckets=_SHARES)
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

DRIFT = Gauge(
    "safeswitch_drift_psi", "Population stability index of stage-1 scores of requests that did not fire, against calibration",
    ("bundle",),
)  # fmt: skip
DRIFT_N = Gauge("safeswitch_drift_requests", "Requests in that index", ("bundle",))
_WINDOW, _EVERY = 2000, 50
_recent: dict[str, tuple[Scores, deque[float]]] = {}
_lock = threading.Lock()


def calibrated_on(calibration: Mapping[str, JsonMapping]) -> None:
    """Measure drift against these calibration scores, by bundle
    (:class:`safeswitch.probers.drift.Histogram`)."""
    with _lock:
        _recent.clear()
        _recent.update(
            {
                name: (Scores.parse(found), deque(maxlen=_WINDOW))
                for name, found in calibration.items()
            }
        )


def _drift(bundle: str, score: float) -> None:
    with _lock:
        if bundle not in _recent:
            return
        reference, scores = _recent[bundle]
        scores.append(score)
        DRIFT_N.labels(bundle).set(len(scores))
        if len(scores) % _EVERY == 0:
            DRIFT.labels(bundle).set(reference.psi(scores))


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
