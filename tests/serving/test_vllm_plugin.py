"""The middleware of the vLLM server, with a scripted application in vLLM's place."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.core.errors import SettingError
from safeswitch.engines.context import CONTEXT, Context
from safeswitch.engines.settings import GuardSettings
from safeswitch.nano import switch_path
from safeswitch.serving.keys import add_key
from safeswitch.serving.settings import ServerSettings
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("ignore")]
CHAT = "/v1/chat/completions"


class App:
    """Takes what it is sent; the state of a vLLM server whose engine enforces."""

    def __init__(self, policy: str = "enforce") -> None:
        front = SimpleNamespace(settings=SimpleNamespace(policy=policy))
        config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=512))
        engine = SimpleNamespace(safeswitch=front, vllm_config=config)
        self.state = SimpleNamespace(engine_client=engine, args=None)
        self.body: Any = None
        self.context: Context | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.body, self.context = (await receive())["body"], CONTEXT.get()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


def sent(
    app: App,
    body: Any,
    path: str = CHAT,
    settings: ServerSettings | None = None,
    method: str = "POST",
    key: str = "",
    root: str = "",
) -> tuple[int, str]:
    """Status and body of the answer."""
    from safeswitch.serving.vllm.plugin import SafeSwitchMiddleware

    events: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(event: Any) -> None:
        events.append(event)

    headers = [(b"content-type", b"application/json")]
    headers += [(b"authorization", f"Bearer {key}".encode())] if key else []
    scope = {
        "type": "http", "method": method, "path": root + path, "root_path": root, "headers": headers,
        "app": app, "query_string": b"",
    }  # fmt: skip
    asyncio.run(SafeSwitchMiddleware(app, settings or ServerSettings())(scope, receive, send))
    return events[0]["status"], b"".join(e.get("body", b"") for e in events).decode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/collective_rpc"),
        ("POST", "/update_weights"),
        ("POST", "/sleep"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/invocations"),
        ("POST", "/v1/chat/completions/batch"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/a_route_of_the_next_vllm"),
        ("PUT", CHAT),
        ("POST", CHAT + "/"),
    ],
)
def test_routes_that_the_table_does_not_know_are_closed(method: str, path: str) -> None:
    app = App()
    status, said = sent(app, {}, path, method=method)
    assert (status, app.body) == (404, None)
    assert "not_served" in said


def test_a_root_path_hides_no_route_from_the_table() -> None:
    app = App()
    assert sent(app, {"add_generation_prompt": 0}, root="/api")[0] == 400
    assert sent(app, {}, "/collective_rpc", root="/api")[0] == 404
    assert sent(app, {"messages": []}, root="/api")[0] == 200


@pytest.mark.parametrize("field", ["continue_final_message", "chat_template", "a_new_field"])
def test_fields_are_held_to_the_table_where_the_guard_enforces(field: str) -> None:
    body = {"messages": [], field: True}
    app = App()
    status, said = sent(app, body)
    assert (status, app.body) == (400, None)
    assert field in said
    assert sent(App("observe"), body)[0] == 200


PAGE = ServerSettings(ui=True, clients_scores=True, clients_may=("off",))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/ui/api/other"),
        ("GET", "/ui/other.js"),
        ("GET", "/ui/app.js/"),
        ("GET", "/ui/..%2frights.py"),
        ("POST", "/ui/api/about"),
        ("POST", "/ui/"),
        ("PUT", "/ui/api/verdicts/x/right"),
        ("GET", "/uix"),
        ("POST", "/collective_rpc"),
        ("POST", "/ui/../collective_rpc"),
    ],
)
def test_the_page_opens_no_address_but_its_own(method: str, path: str) -> None:
    for settings in (PAGE, ServerSettings(clients_scores=True)):
        app = App()
        status, said = sent(app, {}, path, settings, method)
        assert (status, app.body) == (404, None)
        assert "not_served" in said


@pytest.mark.parametrize("root", ["", "/api"])
def test_the_pages_own_addresses_are_open_with_the_flag_alone(root: str) -> None:
    for path in ("/ui/", "/ui/app.js", "/ui/vendor/lit-html.js"):
        app = App()
        assert sent(app, {}, path, PAGE, "GET", root=root)[0] == 200
        assert sent(app, {}, path, method="GET", root=root)[0] == 404
        assert app.body is None, "vLLM has nothing to do with it"
    assert sent(App(), {"messages": []}, "/ui/api/chat")[0] == 404


def test_the_page_says_what_the_workers_have_in_force() -> None:
    app = App()
    front = app.state.engine_client.safeswitch
    front.settings = GuardSettings({"default": str(switch_path())})
    app.state.engine_client.collective_rpc = Workers()
    app.state.engine_client.vllm_config.model_config.served_model_name = "nano"
    status, body = sent(app, {}, "/ui/api/about", PAGE, "GET")
    about = json.loads(body)
    assert status == 200
    assert (about["model"], about["policy"], about["traces"]) == ("nano", "enforce", False)
    assert about["bundles"]["default"]["thresholds"]["stage1"] == 0.125


class Workers:
    """Answers as a worker does whose threshold of stage 1 was moved."""

    async def __call__(self, method: str, args: Any) -> list[Any]:
        assert (method, args) == ("safeswitch_thresholds", ("default", {}))
        return [{**Switch.from_pretrained(switch_path()).gate.thresholds(), "stage1": 0.125}]


def test_the_pages_chat_is_checked_as_every_chat_is_and_answered_by_vllms_own() -> None:
    app = App()
    app.state.engine_client.vllm_config.model_config.served_model_name = "nano"
    system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
    body = {"messages": [system, user]}
    assert sent(app, body, "/ui/api/chat", PAGE)[0] == 200
    assert app.context is not None
    assert (app.context.chat, app.context.system, app.context.policy) == (True, ("a",), None)
    asked = {"model": "nano", "stream": True, "temperature": 0.0}
    assert json.loads(app.body) == {**body, **asked}
    off = {**body, "safeswitch": {"policy": "off"}}
    assert sent(app, off, "/ui/api/chat", PAGE)[0] == 200
    assert app.context.policy == "off"
    for more in ({"temperature": 1}, {"chat_template": "x"}, {"vllm_xargs": {}}, {"n": 2}):
        for policy in ("enforce", "observe"):
            fresh = App(policy)
            assert sent(fresh, {**body, **more}, "/ui/api/chat", PAGE)[0] == 400
            assert fresh.body is None
    limited = replace(PAGE, max_tokens=10)
    assert sent(App(), {**body, "max_tokens": 11}, "/ui/api/chat", limited)[0] == 400
    assert sent(App(), off, "/ui/api/chat", replace(PAGE, clients_may=()))[0] == 403
    assert sent(App(), body, "/ui/api/chat", ServerSettings(ui=True))[0] == 403


def test_what_vllm_refuses_late_is_told_to_the_page_too() -> None:
    from vllm.exceptions import VLLMValidationError

    class Refusing(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise VLLMValidationError("no room")

    app = Refusing()
    app.state.engine_client.vllm_config.model_config.served_model_name = "nano"
    status, said = sent(app, {"messages": [{"role": "user", "content": "b"}]}, "/ui/api/chat", PAGE)
    assert status == 400
    assert "no room" in said


def test_vllms_own_key_does_not_stand_in_for_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    from safeswitch.serving.vllm.server import refuse_page_behind_other_keys

    keyed, open_ = SimpleNamespace(api_key=["sk"]), SimpleNamespace(api_key=None)
    refuse_page_behind_other_keys(keyed, ServerSettings())
    refuse_page_behind_other_keys(open_, PAGE)
    with pytest.raises(SettingError, match="give --keys"):
        refuse_page_behind_other_keys(keyed, PAGE)
    monkeypatch.setenv("VLLM_API_KEY", "sk")
    with pytest.raises(SettingError, match="give --keys"):
        refuse_page_behind_other_keys(open_, PAGE)


def test_beam_search_is_never_served() -> None:
    for policy in ("enforce", "observe"):
        assert sent(App(policy), {"messages": [], "use_beam_search": True})[0] == 400


def test_vllm_reads_what_was_checked_and_is_told_the_operators_limit() -> None:
    app, settings = App(), ServerSettings(max_tokens=10)
    assert sent(app, {"messages": [], "max_tokens": 11}, settings=settings)[0] == 400
    assert sent(app, {"messages": [], "max_tokens": "9"}, settings=settings)[0] == 400
    assert app.context is None
    assert sent(app, {"messages": [], "max_tokens": 10}, settings=settings)[0] == 200
    assert app.context is not None
    assert (app.context.max_tokens, app.context.chat) == (10, True)
    assert json.loads(app.body) == {"messages": [], "max_tokens": 10}
    assert sent(app, {"prompt": "x"}, "/v1/completions")[0] == 200
    assert (app.context.max_tokens, app.context.chat) == (None, False)


def test_a_field_that_needs_a_right_is_served_to_who_has_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    plain, trusted = add_key(file, "plain"), add_key(file, "trusted", extra_fields=True)
    settings, body = ServerSettings(keys=str(file)), {"messages": [], "priority": 1}
    assert sent(App(), body, settings=settings, key=plain)[0] == 400
    assert sent(App(), body, settings=settings, key=trusted)[0] == 200


def start(app: App, settings: ServerSettings) -> dict[str, Any]:
    """What the server's start ends with."""
    from safeswitch.serving.vllm.plugin import SafeSwitchMiddleware

    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(event: Any) -> None:
        told.append(event)

    asyncio.run(
        SafeSwitchMiddleware(app, settings)({"type": "lifespan", "app": app}, receive, send)
    )
    found: dict[str, Any] = told[0]
    return found


@pytest.mark.parametrize("name", ["VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"])
def test_a_server_in_development_mode_does_not_start(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    found = start(App(), ServerSettings())
    assert found["type"] == "lifespan.startup.failed"
    assert name in found["message"]


def test_vllms_own_key_beside_the_page_ends_the_start_however_vllm_was_started() -> None:
    app = App()
    app.state.args = SimpleNamespace(api_key=["sk"])
    found = start(app, PAGE)
    assert found["type"] == "lifespan.startup.failed"
    assert "give --keys" in found["message"]


@pytest.mark.parametrize(
    ("path", "body", "texts"),
    [
        (
            CHAT,
            {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
            ("a",),
        ),
        (
            CHAT,
            {"messages": [{"role": "developer", "content": [{"type": "text", "text": "c"}]}]},
            ("c",),
        ),
        ("/v1/responses", {"input": "x", "instructions": "d"}, ("d",)),
        (
            "/v1/messages",
            {"messages": [], "max_tokens": 1, "system": [{"type": "text", "text": "e"}]},
            ("e",),
        ),
        ("/v1/completions", {"prompt": "x"}, ()),
    ],
)
def test_the_front_end_is_told_what_system_text_must_arrive(
    path: str, body: dict[str, Any], texts: tuple[str, ...]
) -> None:
    app = App()
    assert sent(app, body, path)[0] == 200
    assert app.context is not None
    assert app.context.system == texts


def test_a_body_that_no_context_could_hold_is_not_read() -> None:
    app = App()
    assert sent(app, {"messages": [], "user": "x" * 90_000})[0] == 413
    assert sent(app, {"messages": [], "user": "x" * 70_000})[0] == 200
    settings = ServerSettings(max_body=100_000)
    assert sent(app, {"messages": [], "user": "x" * 90_000}, settings=settings)[0] == 200
