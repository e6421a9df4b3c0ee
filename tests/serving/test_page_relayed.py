"""The page on a server that traces no tokens: its own chat route answers, and the decision says what
the stages said."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.core.types import Decision
from safeswitch.engines.context import ChoiceDecision
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import switch_path, weights_path
from safeswitch.serving.errors import ApiError, Event, Send, internal_error
from safeswitch.serving.middleware import SafeSwitchMiddleware
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.ui.events import read_events, rollback_events
from safeswitch.serving.ui.page import Page
from safeswitch.serving.ui.relayed import RelayedChat
from safeswitch.serving.ui.rights import FILES, Visitor, is_listed
from safeswitch.serving.ui.routes import WithPage
from safeswitch.switch.switch import Switch
from tests.serving.page_made import OPEN, SAFE, UNSAFE, Paged, events, paged


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load(weights_path())


@pytest.fixture(scope="module")
def engine(lm: LanguageModel) -> TransformersEngine:
    return TransformersEngine(lm)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("relayed") / "audit.db"


@pytest.fixture(scope="module")
def page(lm: LanguageModel, audit: Path) -> Iterator[Paged]:
    with paged({**OPEN, "audit": f"sqlite:///{audit}"}, lm=lm, traces=False) as found:
        yield found


def of(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in told if event["type"] == kind]


def text(told: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in of(told, "shown"))


def records(audit: Path) -> int:
    with sqlite3.connect(audit) as connection:
        return int(connection.execute("select count(*) from safeswitch_decisions").fetchone()[0])


# --- on nano, with the transformers server's chat route in the place of vLLM's


def test_a_refusal_is_told_with_its_stages_and_where_it_was_rolled_back(
    page: Paged, engine: TransformersEngine, audit: Path
) -> None:
    switch = Switch.from_pretrained(switch_path())
    (reply,) = engine.generate([UNSAFE], switch, do_sample=False)
    page.chat(SAFE)
    before = records(audit)
    told = page.chat(UNSAFE)
    assert text(told) == reply.text
    reads = of(told, "read")
    assert [(read["stage"], read["at"]) for read in reads] == [("stage1", 0), ("stage2", 3)]
    assert [(read["pending"], read["fired"]) for read in reads] == [(True, False), (False, True)]
    for read in reads:
        assert read["score"] == pytest.approx(reply.decision.scores[read["stage"]])
        assert read["threshold"] == switch.gate.thresholds()[read["stage"]]
    assert [event["at"] for event in of(told, "rollback")] == [3]
    assert told[-1]["type"] == "end"
    assert told[-1]["finish_reason"] == reply.finish_reason
    assert (told[-1]["decision"]["stage"], told[-1]["decision"]["token_index"]) == ("stage2", 3)
    assert records(audit) == before + 1


def test_what_passes_is_told_with_the_last_reading_of_each_stage(
    page: Paged, engine: TransformersEngine
) -> None:
    (reply,) = engine.generate([SAFE], Switch.from_pretrained(switch_path()), do_sample=False)
    told = page.chat(SAFE)
    assert text(told) == reply.text
    assert not of(told, "rollback")
    reads = {read["stage"]: read for read in of(told, "read")}
    assert {name: read["score"] for name, read in reads.items()} == pytest.approx(
        reply.decision.scores
    )
    assert reads["watch"]["at"] == reply.decision.token_index > 16
    assert not any(read["fired"] for read in reads.values())


def test_without_the_guard_there_is_no_decision_and_no_record(
    page: Paged, engine: TransformersEngine, audit: Path
) -> None:
    (bare,) = engine.generate([UNSAFE], do_sample=False)
    page.chat(SAFE)
    before = records(audit)
    told = page.chat(UNSAFE, safeswitch={"policy": "off"})
    assert text(told) == bare.text
    assert {event["type"] for event in told} == {"shown", "end"}
    assert told[-1]["decision"] is None
    assert records(audit) == before


def test_a_late_refusal_follows_what_was_shown_and_thresholds_in_force_are_told(
    lm: LanguageModel, engine: TransformersEngine
) -> None:
    with paged(OPEN, lm=lm, traces=False) as server:
        bars = server.server._front.set_thresholds("default", {"stage2": 1.0})
        assert server.get("/ui/api/about").json()["bundles"]["default"]["thresholds"] == bars
        told = server.chat(UNSAFE)
    shown, _, refusal = text(told).partition("\n\n")
    (bare,) = engine.generate([UNSAFE], do_sample=False)
    assert bare.text.startswith(shown)
    assert "can't help" in refusal
    last = of(told, "read")[-1]
    assert (last["stage"], last["at"], last["fired"]) == ("watch", 16, True)
    assert [event["at"] for event in of(told, "rollback")] == [16]


def test_a_request_that_does_not_fit_is_refused_in_the_words_of_the_chat_route(page: Paged) -> None:
    answer = page.post(
        "/ui/api/chat", {"messages": [{"role": "user", "content": "steal a car " * 400}]}
    )
    assert answer.status_code == 400
    assert "tokens" in answer.json()["error"]["message"]


def test_the_page_says_that_it_traces_nothing_and_shows_no_pilot_text(
    lm: LanguageModel, page: Paged
) -> None:
    assert not page.get("/ui/api/about").json()["traces"]
    with paged({**OPEN, "ui_pilot_text": True}, lm=lm, traces=False) as server:
        assert not server.get("/ui/api/about").json()["pilot_text"]
    with paged({**OPEN, "ui_pilot_text": True}, lm=lm) as server:
        about = server.get("/ui/api/about").json()
        assert (about["traces"], about["pilot_text"]) == (True, True)


# --- with a scripted server in the place of vLLM's

App = Callable[[Any, Any, Send], Awaitable[None]]
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


class Facts:
    """Of a server with one bundle, of which nothing is loaded."""

    def name(self, scope: Any) -> str:
        assert scope["app"] == "the server"
        return "scripted"

    def policy(self, scope: Any) -> str:
        return "enforce"

    def default(self, scope: Any) -> str:
        return "default"

    def pilot(self, scope: Any, bundle: str) -> int:
        return 3

    async def switches(self, scope: Any, names: Any) -> dict[str, Switch]:
        return {}


def asked(app: App, root: str = "", left: bool = False) -> tuple[int, str]:
    """Status and body of what a request to the page's chat is answered with, in front of ``app``.

    With ``left`` the client leaves once it has sent its body.
    """

    def told(error: Exception) -> ApiError:
        return ApiError(400, str(error)) if isinstance(error, LookupError) else internal_error()

    settings = ServerSettings(ui=True, clients_scores=True)
    guarded = SafeSwitchMiddleware(app, settings)
    guarded.app = WithPage(app, Page(Facts(), RelayedChat(app, told), settings, None))
    sent: list[Event] = []
    bodies = [json.dumps(CHAT).encode()]

    async def receive() -> Event:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        sent.append(event)

    path = f"{root}/ui/api/chat"
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": root,
        "headers": [(b"content-type", b"application/json")], "app": "the server", "query_string": b"",
    }  # fmt: skip
    asyncio.run(guarded(scope, receive, send))
    return sent[0]["status"], b"".join(event.get("body", b"") for event in sent).decode()


async def begin(send: Send, status: int = 200, kind: bytes = b"text/event-stream") -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}
    )


def chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@pytest.mark.parametrize("root", ["", "/behind/a/proxy"])
def test_the_chat_route_is_asked_for_the_likeliest_tokens_and_its_chunks_may_come_in_parts(
    root: str,
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        seen.append((scope["path"], json.loads((await receive())["body"])))
        await begin(send)
        parts = [chunk("")[:9], chunk("")[9:] + b": a comment\n\n" + chunk("Hel")[:20]]
        parts += [chunk("Hel")[20:], chunk("lo", "stop") + b"data: [DONE]\n\n"]
        for i, part in enumerate(parts):
            more = i + 1 < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    status, body = asked(app, root)
    assert status == 200
    assert events(body) == [
        {"type": "shown", "text": "Hel"},
        {"type": "shown", "text": "lo"},
        {"type": "end", "finish_reason": "stop", "decision": None},
    ]
    sent = {**CHAT, "model": "scripted", "stream": True, "temperature": 0.0}
    assert seen == [(f"{root}/v1/chat/completions", sent)]


@pytest.mark.parametrize(
    ("status", "said", "answered"),
    [
        (400, {"error": {"message": "too long"}}, (400, "too long")),
        (400, {"detail": "of another shape"}, (500, "could not answer")),
        (500, {"error": {"message": "a secret"}}, (500, "could not answer")),
    ],
)
def test_an_error_of_the_chat_route_is_told_without_its_inside(
    status: int, said: Any, answered: tuple[int, str]
) -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await begin(send, status, b"application/json")
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    found, body = asked(app)
    assert found == answered[0]
    assert answered[1] in json.loads(body)["error"]["message"]
    assert "secret" not in body


def test_an_error_that_the_server_has_not_answered_is_told_before_the_stream_and_in_it() -> None:
    async def early(scope: Any, receive: Any, send: Send) -> None:
        raise LookupError("no room")

    async def late(scope: Any, receive: Any, send: Send) -> None:
        await begin(send)
        await send({"type": "http.response.body", "body": chunk("Hel"), "more_body": True})
        raise ValueError("a secret")

    assert asked(early)[0] == 400
    assert "no room" in asked(early)[1]
    status, body = asked(late)
    assert status == 200
    last = json.loads(body.strip().split("\n\n")[-1].removeprefix("data: "))
    assert "could not answer" in last["error"]["message"]
    assert "secret" not in body


def test_a_stream_that_breaks_off_says_so_in_its_last_event() -> None:
    async def app(scope: Any, receive: Any, send: Send) -> None:
        await begin(send)
        error = json.dumps({"error": {"message": "a secret", "code": 500}}).encode()
        whole = chunk("Hel") + b"data: " + error + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": whole})

    _, body = asked(app)
    told = events(body)
    assert told[0] == {"type": "shown", "text": "Hel"}
    assert "could not answer" in told[1]["error"]["message"]
    assert "secret" not in body


def test_the_server_hears_of_a_client_that_leaves() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Send) -> None:
        heard.append((await receive())["type"])
        heard.append((await receive())["type"])
        await begin(send)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    asked(app, left=True)
    assert heard == ["http.request", "http.disconnect"]


# --- what is listed, and what decisions tell


def test_only_what_the_page_is_made_of_is_listed() -> None:
    verdict = f"/ui/api/verdicts/{'b' * 16}/{'a' * 64}"
    for method, path in (
        ("GET", "/ui"), ("GET", "/ui/"), ("HEAD", "/ui/app.js"), ("GET", "/ui/api/about"),
        ("GET", "/ui/api/traffic"), ("POST", "/ui/api/chat"), ("PUT", f"{verdict}/right"),
        *(("GET", f"/ui/{name}") for name in FILES),
    ):  # fmt: skip
        assert is_listed(method, path), (method, path)
    for method, path in (
        ("POST", "/ui/"), ("GET", "/ui/api/chat"), ("POST", "/ui/api/about"), ("GET", "/ui/api"),
        ("POST", "/ui/api/chat/"), ("PUT", f"{verdict}/wrong"), ("PUT", f"{verdict}/right/x"),
        ("PUT", "/ui/api/verdicts/x/right"), ("DELETE", f"{verdict}/right"), ("GET", "/ui/../keys"),
        ("GET", "/ui/rights.py"), ("HEAD", "/ui/api/about"),
        ("PUT", f"/ui/api/verdicts/x/{'a' * 64}/right"), ("PUT", f"{verdict}/right\n"),
    ):  # fmt: skip
        assert not is_listed(method, path), (method, path)


def decided(**told: Any) -> ChoiceDecision:
    bars = {"stage1": 0.5, "stage2": 0.5, "watch": 0.9}
    decision = Decision(**{"thresholds": bars, "actuator": "refusal_head", **told})
    return ChoiceDecision(0, decision, "default", "id", "enforce", "text")


@pytest.mark.parametrize(
    ("told", "places", "back"),
    [
        ({"fired": True, "stage": "stage1", "scores": {"stage1": 0.9}}, {"stage1": 0}, []),
        (
            {"fired": True, "stage": "stage2", "scores": {"stage1": 0.9, "stage2": 0.8}, "token_index": 3},
            {"stage1": 0, "stage2": 3},
            [3],
        ),
        # a reply that had ended before its pilot tokens were there
        (
            {"fired": True, "stage": "stage2", "scores": {"stage1": 0.9, "stage2": 0.8}, "token_index": 2},
            {"stage1": 0, "stage2": 2},
            [2],
        ),
        (
            {
                "fired": False, "stage": "watch", "token_index": 40,
                "scores": {"stage1": 0.9, "stage2": 0.1, "watch": 0.2},
            },
            {"stage1": 0, "stage2": 3, "watch": 40},
            [],
        ),
        ({"fired": True, "stage": "error", "token_index": 3, "scores": {"stage1": 0.9}}, {"stage1": 0}, [3]),
        ({"fired": True, "stage": "stage2", "token_index": 3, "act": "log", "actuator": "none"}, {}, []),
    ],
)  # fmt: skip
def test_a_decision_tells_the_last_reading_of_each_stage_and_what_was_rolled_back(
    told: dict[str, Any], places: dict[str, int], back: list[int]
) -> None:
    one = decided(**told)
    found = read_events(one.decision, 3)
    assert {event["stage"]: event["at"] for event in found} == places
    assert [event["at"] for event in rollback_events(one)] == back
    fired = [event["stage"] for event in found if event["fired"]]
    assert fired == [name for name in (told["stage"],) if told["fired"] and name in places]


def test_the_product_rule_is_told_with_its_one_threshold() -> None:
    one = decided(
        fired=True, stage="stage2", scores={"stage1": 0.9, "stage2": 0.8}, token_index=3,
        thresholds={"product": 0.6}, rule="product",
    )  # fmt: skip
    assert [event["threshold"] for event in read_events(one.decision, 3)] == [0.6, 0.6]


def test_the_page_knows_its_servers_own_scope_and_not_one_of_its_own() -> None:
    seen: list[Any] = []

    class Asked(Facts):
        async def switches(self, scope: Any, names: Any) -> dict[str, Switch]:
            seen.append((scope["app"], tuple(names)))
            return {}

    page = Page(Asked(), SimpleNamespace(traces=False), ServerSettings(ui=True), None)
    visitor = Visitor("v", (), ("shop", "default"), None, False, False)
    about = asyncio.run(page.about({"app": "the server"}, visitor))
    assert seen == [("the server", ("default", "shop"))]
    assert (about["model"], about["traces"], about["bundles"]) == ("scripted", False, {})
