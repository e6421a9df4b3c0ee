"""Spans as a real OpenTelemetry SDK receives them; drift as a Prometheus scrape shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from safeswitch.serving import metrics
from tests.serving.test_middleware import CHAT, FIRED, PASSED, App, chat, post


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def test_a_request_is_one_span_below_its_callers_with_an_event_for_each_decision(
    spans: InMemorySpanExporter,
) -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    post(
        App([FIRED, PASSED], [chat("a", "b")]),
        {"messages": []},
        headers={"traceparent": caller, "x-request-id": "r1"},
    )
    (span,) = spans.get_finished_spans()
    assert span.name == f"safeswitch {CHAT}"
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == "b7ad6b7169203331"
    assert span.attributes is not None
    assert span.attributes["safeswitch.request_id"] == "r1"
    told = [dict(event.attributes or {}) for event in span.events]
    assert [(t["safeswitch.choice"], t["safeswitch.fired"], t["safeswitch.stage"]) for t in told] == [
        (0, True, "stage2"), (1, False, "stage1"),
    ]  # fmt: skip
    assert told[0]["safeswitch.score.stage2"] == FIRED.scores["stage2"]


def test_drift_is_the_index_of_benign_scores_against_calibration() -> None:
    metrics.calibrated_on({"shop": {"edges": [0.2, 0.4], "counts": [60, 30, 10]}}, 0.25)
    for i in range(100):
        metrics.count(replace(PASSED, scores={"stage1": 0.1 if i % 2 else 0.5}), "shop", "enforce")
        metrics.count(replace(FIRED, scores={"stage1": 0.99}), "shop", "enforce")
        metrics.count(replace(PASSED, scores={"stage1": 0.9}), "unknown", "enforce")
    q, p = [60.5 / 101.5, 30.5 / 101.5, 10.5 / 101.5], [50.5 / 101.5, 0.5 / 101.5, 50.5 / 101.5]
    by_hand = sum((b - a) * math.log(b / a) for a, b in zip(q, p, strict=True))
    assert REGISTRY.get_sample_value("safeswitch_drift_psi", {"bundle": "shop"}) == pytest.approx(
        by_hand
    )
    assert REGISTRY.get_sample_value("safeswitch_drift_requests", {"bundle": "shop"}) == 100
    assert REGISTRY.get_sample_value("safeswitch_drift_psi", {"bundle": "unknown"}) is None
    metrics.calibrated_on({}, 0.25)


def test_drift_beyond_its_bound_raises_a_metric_and_says_once_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics.calibrated_on({"shop": {"edges": [0.2, 0.4], "counts": [60, 30, 10]}}, 0.25)

    def send(requests: int, score: float) -> float | None:
        for _ in range(requests):
            metrics.count(replace(PASSED, scores={"stage1": score}), "shop", "enforce")
        return REGISTRY.get_sample_value("safeswitch_drift_exceeded", {"bundle": "shop"})

    assert send(450, 0.5) == 0  # too few to tell
    assert send(100, 0.5) == 1
    assert send(400, 0.5) == 1
    assert len(caplog.records) == 1
    for words in ("shop", "safeswitch review", "safeswitch recalibrate", "bound 0.25"):
        assert words in caplog.text
    for _ in range(200):  # as in calibration, until the others have left the window
        assert send(6, 0.1) is not None
        send(3, 0.3)
        last = send(1, 0.5)
    assert last == 0
    assert "within the bound again" in caplog.text
    metrics.calibrated_on({}, 0.25)
