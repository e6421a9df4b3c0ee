"""Prometheus metrics of the guard; the server's own ``/metrics`` shows them beside its others."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from safeswitch.core.types import Decision

_SHARES = tuple(i / 20 for i in range(21))
REQUESTS = Counter("safeswitch_requests", "Decided choices", ("bundle", "policy", "stage", "fired"))
SCORES = Histogram("safeswitch_score", "Score of a stage", ("bundle", "stage"), buckets=_SHARES)
LATENCY = Histogram(
    "safeswitch_latency_seconds", "Time spent reading and scoring one request", ("bundle",),
    buckets=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0),
)
DISCARDED = Counter("safeswitch_discarded_tokens", "Reply tokens that were written and never shown", ("bundle",))
ERRORS = Counter("safeswitch_prober_errors", "Decisions on which a prober could not run", ("bundle",))


def count(decision: Decision, bundle: str, policy: str) -> None:
    """Count one decision."""
    REQUESTS.labels(bundle, policy, decision.stage, str(decision.fired).lower()).inc()
    LATENCY.labels(bundle).observe(decision.latency_s)
    for stage, score in decision.scores.items():
        SCORES.labels(bundle, stage).observe(score)
    if decision.fired and policy == "enforce":
        DISCARDED.labels(bundle).inc(decision.token_index)
    if decision.error is not None:
        ERRORS.labels(bundle).inc()
