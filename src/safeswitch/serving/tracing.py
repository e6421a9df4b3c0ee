"""One OpenTelemetry span per request, through the API package alone: it costs nothing until the
operator sets up an SDK (``opentelemetry-instrument safeswitch serve ...``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind

from safeswitch.engines.context import ChoiceDecision


@contextmanager
def request_span(
    path: str, request_id: str, headers: Iterable[tuple[bytes, bytes]]
) -> Iterator[Span]:
    """A span below the caller's own, when the request names one (``traceparent``)."""
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    tracer = trace.get_tracer("safeswitch")
    with tracer.start_as_current_span(
        f"safeswitch {path}",
        propagate.extract(carrier),
        SpanKind.SERVER,
        {"safeswitch.request_id": request_id},
    ) as span:
        yield span


def add_decision(span: Span, decided: ChoiceDecision) -> None:
    """An event for one decided choice."""
    d = decided.decision
    scores = {f"safeswitch.score.{stage}": score for stage, score in d.scores.items()}
    span.add_event(
        "safeswitch.decision",
        {
            "safeswitch.choice": decided.choice,
            "safeswitch.fired": d.fired,
            "safeswitch.stage": d.stage,
            "safeswitch.category": d.category,
            "safeswitch.act": d.act,
            "safeswitch.policy": decided.policy,
            "safeswitch.bundle": decided.bundle_id,
            "safeswitch.reading_seconds": d.latency_s,
            **scores,
        },
    )
