"""What the server measures of answers, of streams and of the audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.settings import ServerSettings
from tests.serving.test_audit import record
from tests.serving.test_middleware import PASSED, App, chat, post


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"safeswitch_{name}", labels) or 0.0


def chunk(**delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_answers_to_posts_are_counted_by_their_status_and_no_others() -> None:
    before = [value("responses_total", status=status) for status in ("200", "400")]
    post(App([PASSED], [chat("a")]), {})
    post(App([PASSED], [chat("a")]), b"{")
    post(App([], [b"{}"]), {}, method="GET", path="/health")
    after = [value("responses_total", status=status) for status in ("200", "400")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]


@pytest.mark.parametrize(
    ("events", "counted"),
    [
        ([chunk(role="assistant", content=""), chunk(content="a"), chunk(content="b")], 1),
        ([chunk(role="assistant", content="")], 0),
        ([chunk(refusal="no")], 1),
        ([b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n'], 1),
        ([b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'], 0),
    ],
)
def test_a_stream_is_timed_to_its_first_text(events: list[bytes], counted: int) -> None:
    before = value("first_text_seconds_count")
    post(App([PASSED], [*events, b"data: [DONE]\n\n"], "text/event-stream"), {"stream": True})
    assert value("first_text_seconds_count") - before == counted


def test_the_audit_says_what_waits_what_is_damaged_and_whether_it_is_down(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=tmp_path / "waiting.db")
    damaged = value("audit_damaged_records_total")
    store.write(record(0))
    store.write({**record(1), "colour": 1})
    assert (value("audit_waiting_records"), value("audit_down")) == (2, 1)
    folder.mkdir()
    store.write(record(2))
    assert (value("audit_waiting_records"), value("audit_down")) == (0, 0)
    assert value("audit_damaged_records_total") - damaged == 1
    store.close()


def test_a_decision_that_could_be_kept_nowhere_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Audit, record: Any) -> None:
        raise AuditError("full")

    monkeypatch.setattr(Audit, "write", fails)
    before = value("audit_unrecorded_total")
    settings = ServerSettings(audit=f"sqlite:///{tmp_path / 'a.db'}")
    assert post(App([PASSED], [b"{}"]), {"prompt": "x"}, settings).status == 503
    assert value("audit_unrecorded_total") - before == 1
