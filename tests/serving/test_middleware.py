"""What goes into the server and what comes out of it, with a scripted application in the server's
place."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.types import Decision
from safeswitch.engines.context import CONTEXT, ChoiceDecision, Context
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.keys import add_key
from safeswitch.serving.middleware import SafeSwitchMiddleware
from safeswitch.serving.process import log_to_stderr
from safeswitch.serving.settings import ServerSettings

BOTH = {"stage1": 0.5, "stage2": 0.5}
FIRED = Decision(
    True, "stage2", {"stage1": 0.9, "stage2": 0.8}, BOTH, token_index=3, actuator="low_rank_head"
)
PASSED = Decision(False, "stage1", {"stage1": 0.1}, {"stage1": 0.5})
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class App:
    """Decides on each choice as told, then sends the given parts of a body."""

    def __init__(
        self,
        decisions: list[Decision],
        parts: list[bytes],
        kind: str = "application/json",
        text: str = "hello",
    ) -> None:
        self.decisions, self.parts, self.kind, self.text = decisions, parts, kind, text
        self.body, self.headers = b"", {}
        self.context: Context | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.body = (await receive())["body"]
        self.context = CONTEXT.get()
        assert self.context is not None or not self.decisions
        for i, decision in enumerate(self.decisions):
            assert self.context is not None
            decided = ChoiceDecision(
                i, decision, "default", "abcd", self.context.policy or "enforce", self.text
            )
            self.context.decisions[i] = decided
            assert self.context.on_decision is not None
            await self.context.on_decision(decided)
        headers = [(b"content-type", self.kind.encode()), (b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for i, part in enumerate(self.parts):
            await send(
                {"type": "http.response.body", "body": part, "more_body": i + 1 < len(self.parts)}
            )


class Answer:
    def __init__(self, events: list[Any]) -> None:
        self.status = events[0]["status"]
        self.headers = {k.decode(): v.decode() for k, v in events[0]["headers"]}
        self.body = b"".join(e.get("body", b"") for e in events[1:])
        self.pieces = [e.get("body", b"") for e in events[1:]]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def post(
    app: Any,
    body: Any,
    settings: ServerSettings | None = None,
    headers: dict[str, str] | None = None,
    path: str = "/v1/chat/completions",
    made: type[SafeSwitchMiddleware] = SafeSwitchMiddleware,
    method: str = "POST",
) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    events: list[Any] = []
    halves = [raw[: len(raw) // 2], raw[len(raw) // 2 :]]

    async def receive() -> Any:
        if not halves:
            return {"type": "http.disconnect"}
        part = halves.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(halves)}

    async def send(event: Any) -> None:
        events.append(event)

    scope = {
        "type": "http", "method": method, "path": path,
        "headers": [(k.encode(), v.encode()) for k, v in {"content-type": "application/json", **(headers or {})}.items()],
    }  # fmt: skip
    middleware = made(app, settings or ServerSettings())
    asyncio.run(middleware(scope, receive, send))
    if middleware.audit is not None:
        middleware.audit.close()
    return Answer(events)


def chat(*texts: str) -> bytes:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": "stop"}
        for i, t in enumerate(texts)
    ]
    return json.dumps({"id": "x", "choices": choices}).encode()


def test_every_reply_names_its_request_and_a_browser_may_ask_what_it_may_send_without_a_key(
    tmp_path: Path,
) -> None:
    named = {"X-Request-Id".lower(): "mine-1"}
    assert (
        post(App([], [b"{}"]), b"", headers=named, method="GET", path="/v1/models").headers[
            "x-request-id"
        ]
        == "mine-1"
    )
    assert post(App([], [b"{}"]), b"", method="GET", path="/v1/models").headers["x-request-id"]
    add_key(tmp_path / "keys.json", "alice")
    settings = ServerSettings(keys=str(tmp_path / "keys.json"))
    assert post(App([], [b"{}"]), b"", settings, method="OPTIONS").status == 200
    assert [
        post(App([], [b"{}"]), b"{}", settings, method=method).status for method in ("GET", "POST")
    ] == [401, 401]


def test_decisions_are_logged_with_the_requests_id(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("safeswitch")
    before = log.handlers[:], log.level, log.propagate
    log.handlers[:] = []
    log.setLevel(logging.NOTSET)  # another test's server may have set the log up in this process
    try:
        log_to_stderr()
        log_to_stderr()
        post(App([FIRED], [chat("x")]), {"messages": []}, headers={"x-request-id": "mine-2"})
    finally:
        log.handlers[:], log.level, log.propagate = before
    said = [line for line in capsys.readouterr().err.splitlines() if "mine-2" in line]
    assert len(said) == 1
    assert "choice 0: fired=True stage=stage2 token=3 policy=enforce" in said[0]


def test_a_json_reply_carries_the_decision_and_the_right_length() -> None:
    whole = chat("I can't help with that. é")
    answer = post(
        App([FIRED], [whole[:20], whole[20:]]),
        {"messages": []},
        ServerSettings(clients_scores=True),
    )
    assert answer.json["safeswitch"] == {
        "fired": True, "switched": True, "stage": "stage2", "scores": FIRED.scores, "thresholds": FIRED.thresholds,
        "token_index": 3, "policy": "enforce", "bundle": "default", "bundle_id": "abcd",
    }  # fmt: skip
    assert answer.json["choices"][0]["safeswitch"] == answer.json["safeswitch"]
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert int(answer.headers["content-length"]) == len(answer.body)


SEEN = replace(FIRED, category="cyber", categories={"cyber": 0.9}, severity="refuse")


@pytest.mark.parametrize(
    ("decision", "settings", "told"),
    [
        (SEEN, {}, set()),
        (SEEN, {"tell_kinds": True}, {"category", "severity"}),
        (SEEN, {"clients_scores": True}, {"category", "severity", "categories"}),
        (replace(SEEN, act="annotate"), {}, {"category", "severity"}),
        (replace(SEEN, act="log"), {}, set()),
        (replace(SEEN, act="log"), {"clients_scores": True}, {"category", "severity", "categories", "act"}),
        (FIRED, {"tell_kinds": True, "clients_scores": True}, set()),
    ],
)  # fmt: skip
def test_kinds_of_harm_are_told_to_whom_they_are_meant_for(
    decision: Decision, settings: dict[str, Any], told: set[str]
) -> None:
    answer = post(App([decision], [chat("x")]), {"messages": []}, ServerSettings(**settings))
    about = {"category", "severity", "categories", "act"}
    assert about & set(answer.json["safeswitch"]) == told


def test_a_logged_request_was_not_switched_and_its_text_is_no_refusal() -> None:
    logged = replace(SEEN, act="log", actuator="none")
    answer = post(App([logged], [chat("x")]), {"messages": []}, ServerSettings(refusal_field=True))
    told = answer.json["safeswitch"]
    assert (told["fired"], told["switched"]) == (True, False)
    assert answer.json["choices"][0]["message"]["content"] == "x"


def test_every_choice_carries_its_own() -> None:
    answer = post(App([FIRED, PASSED], [chat("no", "yes")]), {"messages": []})
    assert [c["safeswitch"]["fired"] for c in answer.json["choices"]] == [True, False]
    assert "safeswitch" not in answer.json


def test_the_refusal_field_is_filled_where_the_operator_wants_it() -> None:
    app: Callable[[], App] = lambda: App([FIRED, PASSED], [chat("no", "yes")])  # noqa: E731
    plain = post(app(), {}).json["choices"][0]["message"]
    assert plain == {"role": "assistant", "content": "no"}
    first, second = (
        c["message"] for c in post(app(), {}, ServerSettings(refusal_field=True)).json["choices"]
    )
    assert first == {"role": "assistant", "content": None, "refusal": "no"}
    assert second == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("size", [1, 7, 40, 4000])
def test_the_chunk_of_a_stream_that_ends_a_choice_carries_the_decision_however_it_is_cut(
    size: int,
) -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": 'data: {"é'}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"total_tokens": 3}},
    ]
    stream = (
        b": keep-alive\n\n"
        + b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks)
        + b"data: [DONE]\n\n"
    )
    parts = [stream[i : i + size] for i in range(0, len(stream), size)]
    answer = post(
        App([PASSED], [*parts, b""], "text/event-stream; charset=utf-8"), {"stream": True}
    )
    events = answer.body.decode().split("\n\n")
    assert events[0] == ": keep-alive"
    got = [json.loads(e.removeprefix("data: ")) for e in events if e.startswith("data: {")]
    assert got[0] == chunks[0]
    assert got[1]["safeswitch"]["fired"] is False
    assert got[1]["choices"][0]["safeswitch"] == got[1]["safeswitch"]
    assert got[2] == chunks[2]
    assert events[-2:] == ["data: [DONE]", ""]


def test_a_stream_is_passed_on_event_by_event() -> None:
    first = (
        b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}\n\n'
    )
    answer = post(App([PASSED], [first, b"data: [DONE]\n\n"], "text/event-stream"), {})
    assert answer.pieces[0] == first


def test_a_request_id_is_kept_or_made_and_a_bad_one_refused() -> None:
    app = App([PASSED], [chat("a")])
    assert post(app, {}, headers={"x-request-id": "me-1"}).headers["x-request-id"] == "me-1"
    assert app.headers["x-request-id"] == "me-1"
    assert len(post(app, {}).headers["x-request-id"]) == 32
    bad = post(app, {}, headers={"x-request-id": "a b"})
    assert (bad.status, bad.json["error"]["code"]) == (400, 400)


def test_wishes_go_to_those_who_may_and_never_to_the_engine() -> None:
    app = App([FIRED], [chat("a")])
    body = {"messages": [], "safeswitch": {"policy": "observe"}}
    refused = post(app, body)
    assert (refused.status, refused.json["error"]["type"]) == (403, "permission_error")
    assert app.context is None
    allowed = post(app, body, ServerSettings(clients_may=("observe",)))
    assert app.context is not None
    assert app.context.policy == "observe"
    assert json.loads(app.body) == {"messages": []}
    assert allowed.json["safeswitch"]["switched"] is False
    other = {"safeswitch": {"bundle": "other"}}
    assert post(app, other).status == 403
    assert post(app, other, ServerSettings(clients_bundles=("other",))).status == 200
    assert app.context.bundle == "other"


@pytest.mark.parametrize("wish", ["off", {"policy": 1}, {"mode": "off"}, ["policy"]])
def test_wishes_of_another_shape_are_refused(wish: object) -> None:
    assert post(App([], [b"{}"]), {"safeswitch": wish}).status == 400


def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole() -> None:
    assert post(App([], [b"{}"]), b"x" * 100, ServerSettings(max_body=50)).status == 413


def test_a_request_without_a_body_goes_on_and_one_that_cannot_be_read_does_not() -> None:
    app = App([PASSED], [b"{}"])
    assert post(app, b"").status == 200
    assert (app.body, app.context is not None) == (b"", True)
    for body in (b"{", b"[1]", b"\xff", b'"text"'):
        app = App([PASSED], [b"{}"])
        assert post(app, body).status == 400
        assert app.context is None


def test_while_the_audit_is_down_requests_are_turned_away_before_they_are_run(
    tmp_path: Path,
) -> None:
    app = App([PASSED], [b"{}"])
    answer = post(
        app, {"prompt": "x"}, ServerSettings(audit=f"sqlite:///{tmp_path / 'absent' / 'a.db'}")
    )
    assert (answer.status, answer.json["error"]["type"], app.context) == (503, "server_error", None)
    assert "absent" not in answer.body.decode()


def test_a_reply_whose_decision_was_not_recorded_does_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Audit, record: Any) -> None:
        raise AuditError("full")

    class Catching(App):
        """As an OpenAI server does: an error of the engine becomes a reply."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            with suppress(AuditError):
                await super().__call__(scope, receive, send)
            await send(
                {
                    "type": "http.response.start",
                    "status": 500,
                    "headers": [(b"content-type", b"application/json")],
                }
            )
            await send({"type": "http.response.body", "body": b'{"error": "secret"}'})

    monkeypatch.setattr(Audit, "write", fails)
    answer = post(
        Catching([PASSED], [b"{}"]),
        {"prompt": "x"},
        ServerSettings(audit=f"sqlite:///{tmp_path / 'a.db'}"),
    )
    assert answer.status == 503
    assert "secret" not in answer.body.decode()


def test_an_error_that_nothing_has_caught_is_answered_without_the_servers_inside() -> None:
    class Breaks(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("secret")

    answer = post(Breaks([], []), {"prompt": "x"})
    assert (answer.status, answer.json["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.body.decode()


def test_an_error_in_a_stream_shows_nothing_of_the_servers_inside() -> None:
    event = b'data: {"error": {"message": "secret", "code": 500}}\n\n'
    kept = b'data: {"error": {"message": "too long", "code": 400}}\n\n'
    answer = post(App([], [event, kept], "text/event-stream"), {"prompt": "x"})
    assert b"secret" not in answer.body
    assert b"too long" in answer.body


def test_websockets_are_closed_unserved() -> None:
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        raise AssertionError("nothing is to be read")

    app = App([], [])
    asyncio.run(
        SafeSwitchMiddleware(app, ServerSettings())(
            {"type": "websocket", "headers": []}, receive, send
        )
    )
    assert (sent[0]["type"], sent[0]["code"], app.context) == ("websocket.close", 1008, None)


def test_text_that_no_database_takes_is_mended_and_its_hash_is_true(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    settings = ServerSettings(audit=url, audit_text=True)
    post(App([PASSED], [b"{}"], text="ab\0"), {"prompt": "x"}, settings)
    store = Audit(url)
    row = next(store.export())
    store.close()
    assert row["text_sha256"] == hashlib.sha256(b"ab\x00").hexdigest()
    assert row["text"] == "ab\ufffd"


def test_every_decision_is_on_record_before_the_reply(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    settings = ServerSettings(audit=url)
    post(
        App([FIRED, PASSED], [chat("a", "b")]),
        {"prompt": "hello"},
        settings,
        {"x-request-id": "r1"},
    )
    store = Audit(url)
    rows = list(store.export())
    store.close()
    facts = [(r["request_id"], r["choice"], r["fired"], r["stage"]) for r in rows]
    assert facts == [("r1", 0, True, "stage2"), ("r1", 1, False, "stage1")]
    assert json.loads(rows[0]["scores"]) == FIRED.scores
    assert rows[0]["text_sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert {r["text"] for r in rows} == {None}
