"""Who is let in, how often, and for what."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.serving.admin import THRESHOLDS
from safeswitch.serving.keys import add_key, hash_of, read_keys, remove_key
from safeswitch.serving.middleware import SafeSwitchMiddleware, Scope
from safeswitch.serving.settings import ServerSettings
from tests.serving.test_middleware import CHAT, PASSED, Answer, App, post

COLOURED = {"name": "a", "sha256": "x", "colour": 1}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def ask(
    file: Path,
    secret: str | None,
    body: Any = None,
    app: App | None = None,
    path: str = CHAT,
    **settings: Any,
) -> Answer:
    headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
    given = ServerSettings(keys=str(file), **settings)
    return post(app or App([PASSED], [b"{}"]), body or {"messages": []}, given, headers, path)


def test_only_hashes_are_kept_and_only_the_owner_reads_them(file: Path) -> None:
    secret = add_key(file, "alice")
    assert secret not in file.read_text()
    assert set(read_keys(file)) == {hash_of(secret)}
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingError, match="already"):
        add_key(file, "alice")


@pytest.mark.parametrize("wrong", [{"rate": "often"}, {"concurrent": -1}, {"may": ("all",)}])
def test_a_key_that_makes_no_sense_is_named_and_not_written(file: Path, wrong: Any) -> None:
    with pytest.raises(SettingError):
        add_key(file, "alice", **wrong)
    assert not file.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", *(json.dumps({"keys": [key]}) for key in ({"name": "a"}, COLOURED))]
)
def test_a_damaged_file_lets_no_server_start(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ArtifactError, match="API keys"):
        SafeSwitchMiddleware(None, ServerSettings(keys=str(file)))


def test_without_a_known_key_nothing_but_health_is_answered(file: Path) -> None:
    secret = add_key(file, "alice")
    for wrong in (None, "", secret[:-1], f"{secret}x", "é"):
        answer = ask(file, wrong)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert ask(file, secret).status == 200
    assert ask(file, None, path="/health").status == 200


def test_a_key_that_is_removed_is_refused_by_the_running_server(file: Path) -> None:
    secret, other = add_key(file, "alice"), add_key(file, "bob")
    app = App([PASSED], [b"{}"])
    middleware = SafeSwitchMiddleware(app, ServerSettings(keys=str(file)))
    assert middleware.access is not None
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    assert middleware.access.key(headers).name == "alice"
    remove_key(file, "alice")
    with pytest.raises(Exception, match="known API key"):
        middleware.access.key(headers)
    assert middleware.access.key([(b"authorization", f"bearer {other}".encode())]).name == "bob"
    file.write_text("{")
    with pytest.raises(Exception, match="cannot be checked"):
        middleware.access.key(headers)
    with pytest.raises(SettingError, match="no key named"):
        remove_key_of_nobody(file)


def remove_key_of_nobody(file: Path) -> None:
    file.write_text('{"keys": []}')
    remove_key(file, "nobody")


def test_rights_and_bundles_are_the_keys_own(file: Path) -> None:
    secret = add_key(file, "alice", may=("observe",), bundles=("b", "c"))
    plain = add_key(file, "bob")
    app = App([PASSED], [b"{}"])
    ask(file, secret, app=app)
    assert app.context is not None
    assert (app.context.policy, app.context.bundle) == (None, "b")
    ask(file, secret, {"safeswitch": {"policy": "observe", "bundle": "c"}}, app)
    assert (app.context.policy, app.context.bundle) == ("observe", "c")
    refused = (
        (secret, {"policy": "off"}),
        (secret, {"bundle": "a"}),
        (plain, {"policy": "observe"}),
        (plain, {"bundle": "b"}),
    )
    for who, wish in refused:
        assert ask(file, who, {"safeswitch": wish}, clients_may=("observe",)).status == 403


def test_rates_and_concurrency_are_counted_by_key(file: Path) -> None:
    often = add_key(file, "often", rate="3/hour")
    wide = add_key(file, "wide", concurrent=2)
    waiting = asyncio.Event()

    class Slow(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await waiting.wait()
            await super().__call__(scope, receive, send)

    async def all_of_it() -> tuple[list[Any], list[Any]]:
        middleware = SafeSwitchMiddleware(Slow([PASSED], [b"{}"]), ServerSettings(keys=str(file)))

        async def one(secret: str) -> Any:
            events: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": b"{}", "more_body": False}

            async def send(event: Any) -> None:
                events.append(event)

            headers = [
                (b"authorization", f"Bearer {secret}".encode()),
                (b"content-type", b"application/json"),
            ]
            await middleware(
                {"type": "http", "method": "POST", "path": CHAT, "headers": headers}, receive, send
            )
            return events

        running = [asyncio.create_task(one(wide)) for _ in range(3)]
        await asyncio.sleep(0.05)
        waiting.set()
        at_once = await asyncio.gather(*running) + [await one(wide)]
        return [e[0] for e in at_once], [(await one(often))[0] for _ in range(5)]

    at_once, in_a_time = asyncio.run(all_of_it())
    assert sorted(e["status"] for e in at_once) == [200, 200, 200, 429]
    assert at_once[3]["status"] == 200
    assert [e["status"] for e in in_a_time] == [200, 200, 200, 429, 429]
    assert 3500 < int(dict(in_a_time[4]["headers"])[b"retry-after"]) <= 3600


def test_thresholds_are_for_admins_and_checked(file: Path) -> None:
    class Server(SafeSwitchMiddleware):
        async def set_thresholds(
            self, scope: Scope, bundle: str, thresholds: Any
        ) -> dict[str, float]:
            if bundle != "default":
                raise SettingError("no such bundle")
            return {"stage1": 0.5, **thresholds}

    admin, plain = add_key(file, "root", admin=True), add_key(file, "bob")
    for secret, body, status in (
        (plain, {}, 403), (admin, {}, 200), (admin, {"thresholds": {"stage1": 0.7}}, 200), (admin, {"bundle": "x"}, 400),
        (admin, {"thresholds": {"stage1": True}}, 400), (admin, {"threshold": {}}, 400), (admin, [1], 400),
        (admin, {"bundle": 1}, 400),
    ):  # fmt: skip
        headers = {"authorization": f"Bearer {secret}"}
        answer = post(
            App([], [b""]), body, ServerSettings(keys=str(file)), headers, THRESHOLDS, Server
        )
        assert answer.status == status, body
        if "thresholds" in body and status == 200:
            assert answer.json == {"bundle": "default", "thresholds": {"stage1": 0.7}}
    assert post(App([], [b""]), {}, ServerSettings(), {}, THRESHOLDS).status == 403


def test_the_right_to_see_scores_is_given_on_the_command_line(file: Path) -> None:
    from typer.testing import CliRunner

    from safeswitch.cli.keys import keys_app

    for name, flags in (("plain", []), ("reader", ["--scores"]), ("root", ["--admin"])):
        assert (
            CliRunner().invoke(keys_app, ["add", name, "--file", str(file), *flags]).exit_code == 0
        )
    rights = {key.name: (key.scores, key.admin) for key in read_keys(file).values()}
    assert rights == {"plain": (False, False), "reader": (True, False), "root": (False, True)}
