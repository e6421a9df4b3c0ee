"""`safeswitch serve` on nano, with the real OpenAI client: what arrives at the socket is what the
transformers engine says."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from benchmarks.running import serving

from safeswitch.core.types import Example, Reply
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.serving.keys import add_key
from safeswitch.serving.ui.rights import FILES
from safeswitch.switch.switch import Switch
from tests.browser import chromium
from tests.engines.vllm_made import needs_vllm
from tests.serving.page_looked_at import ask, kept, looked_at, opened
from tests.serving.page_made import SAFE, UNSAFE, events

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NEW = 48


def examples() -> list[Example]:
    return [
        e
        for suite in ("jailbroken", "plain_unsafe", "lookalike", "ordinary")
        for e in load_suite(suite, 16, 0)
    ]


@pytest.fixture(scope="module")
def told() -> list[tuple[Example, Reply]]:
    """What the transformers engine answers, request by request."""
    engine = TransformersEngine.load(weights_path())
    replies = engine.generate(
        examples(), Switch.from_pretrained(switch_path()), max_new_tokens=NEW, do_sample=False
    )
    return list(zip(examples(), replies, strict=True))


@dataclass(frozen=True)
class Served:
    url: str
    folder: Path
    plain: str
    """A key that may see scores and nothing else."""
    admin: str
    """A key that may observe and change thresholds."""
    blind: str
    """A key that may not see scores."""
    tuner: str
    """A key that may see scores and switch the guard off."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.json"
    plain, blind = add_key(keys, "plain", scores=True), add_key(keys, "blind")
    admin = add_key(keys, "admin", may=("observe",), admin=True)
    tuner = add_key(keys, "tuner", scores=True, may=("off",))
    flags = ("--keys", str(keys), "--audit", f"sqlite:///{folder / 'audit.db'}", "--ui")
    with serving(folder, "vllm", *flags) as running:
        yield Served(running.url, folder, plain, admin, blind, tuner)


def test_front_ends_that_know_no_middleware_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from safeswitch.core.errors import SettingError
    from safeswitch.serving.vllm.server import refuse_other_front_ends

    refuse_other_front_ends(SimpleNamespace(grpc=False))
    with pytest.raises(SettingError, match="--grpc cannot be given"):
        refuse_other_front_ends(SimpleNamespace(grpc=True))
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(SettingError, match="unset VLLM_USE_RUST_FRONTEND"):
        refuse_other_front_ends(SimpleNamespace(grpc=False))


def test_flags_that_would_take_the_guard_out_are_refused_and_the_host_is_local() -> None:
    from safeswitch.core.errors import SettingError
    from safeswitch.engines.settings import GuardSettings
    from safeswitch.serving.vllm.server import serve_arguments

    guard = GuardSettings({"default": str(switch_path())})
    for flag in (
        "--logits-processors",
        "--speculative-config={}",
        "--model_class_overrides",
        "--worker-extension-cls",
    ):
        with pytest.raises(SettingError, match="cannot be given"):
            serve_arguments(str(weights_path()), guard, [flag, "x"])
    made = serve_arguments(
        str(weights_path()), guard, ["--additional-config", '{"mine": 1}', "--port", "1"]
    )
    assert made[made.index("--host") + 1] == "127.0.0.1"
    assert set(json.loads(made[made.index("--additional-config") + 1])) == {"mine", "safeswitch"}
    assert made.count("--additional-config") == 1
    assert made[made.index("--dtype") + 1] == "float32"  # nano's own; vLLM's auto is bfloat16
    halved = serve_arguments(str(weights_path()), guard, ["--dtype", "bfloat16"])
    assert halved.count("--dtype") == 1
    assert "127.0.0.1" not in serve_arguments(str(weights_path()), guard, ["--host", "0.0.0.0"])


OTHER_SPELLINGS = (
    (["--logits-proc", "mine:Processor"], "--logits-processors cannot"),
    (["--additional-config.safeswitch.policy", "off"], "--additional-config is given once"),
    (["--additional_conf", '{"mine": 1}'], "--additional-config is given once"),
    (["--additional_conf", "[1]"], "--additional-config is given once"),
    (["--additional-config", "[1]"], r"must be a JSON mapping; got '\[1\]'"),
    (["--additional-config", "{bad"], "must be a JSON mapping; got '{bad'"),
    (["--additional-config"], "must be a JSON mapping; got ''"),
    (["--worker-ext", "mine.Worker"], "--worker-extension-cls cannot"),
    (["--model-class", "{}"], "--model-class-overrides cannot"),
    (["--logprobs-m", "raw_logprobs"], "--logprobs-mode cannot"),
    (
        ["-sc", '{"method": "ngram", "num_speculative_tokens": 2}'],
        "--speculative-config cannot",
    ),
    (["--spec-method", "ngram", "--spec-tokens", "2"], "--spec-method, --spec-tokens cannot"),
)


@pytest.mark.parametrize(("flags", "message"), OTHER_SPELLINGS)
def test_no_spelling_of_a_flag_takes_the_guard_out(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeswitch.core.errors import SettingError
    from safeswitch.engines.settings import GuardSettings
    from safeswitch.serving.settings import ServerSettings
    from safeswitch.serving.vllm import server

    monkeypatch.setattr(server.ServeSubcommand, "cmd", lambda self, args: pytest.fail("it starts"))
    guard = GuardSettings({"default": str(switch_path())})
    with pytest.raises(SettingError, match=message):
        server.serve(str(weights_path()), guard, ServerSettings(), flags)


def test_a_server_without_the_middleware_is_refused() -> None:
    from safeswitch.core.errors import SettingError
    from safeswitch.serving.vllm.server import refuse_changed_guard

    args = SimpleNamespace(additional_config={"safeswitch": {}}, middleware=["mine.Middleware"])
    with pytest.raises(SettingError, match="--middleware cannot be given"):
        refuse_changed_guard(args, {"additional_config": {"safeswitch": {}}})


def test_a_file_of_flags_takes_the_guard_out_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeswitch.core.errors import SettingError
    from safeswitch.engines.settings import GuardSettings
    from safeswitch.serving.settings import ServerSettings
    from safeswitch.serving.vllm import server

    started: list[object] = []
    monkeypatch.setattr(server.ServeSubcommand, "cmd", lambda self, args: started.append(args))
    guard = GuardSettings({"default": str(switch_path())})
    file = tmp_path / "flags.yaml"
    file.write_text("additional-config.safeswitch.policy: 'off'\n")
    with pytest.raises(SettingError, match="--additional-config is given once"):
        server.serve(str(weights_path()), guard, ServerSettings(), ["--config", str(file)])
    assert started == []
    server.serve(str(weights_path()), guard, ServerSettings(), ["--additional_config", '{"a": 1}'])
    assert set(started[-1].additional_config) == {"a", "safeswitch"}


def test_a_gguf_file_is_refused_with_the_command_that_makes_a_folder(tmp_path: Path) -> None:
    from safeswitch.core.errors import ModelError
    from safeswitch.engines.vllm.engine import VLLMEngine
    from safeswitch.engines.vllm.settings import GuardSettings
    from safeswitch.serving.vllm.server import serve_arguments

    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    command = r"safeswitch export --model .*m\.gguf --out FOLDER"
    with pytest.raises(ModelError, match=command):
        serve_arguments(str(file), GuardSettings({"default": str(switch_path())}), [])
    with pytest.raises(ModelError, match=command):
        VLLMEngine(file, str(switch_path()))


def body(example: Example, **more: Any) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    return {"model": "nano", "messages": turns, "max_tokens": NEW, "temperature": 0.0, **more}


def test_the_sync_client_gets_the_reply_and_the_decision(
    server: Served, told: list[tuple[Example, Reply]]
) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.plain)
    for example, reply in told[::4]:
        got = client.chat.completions.create(**body(example))
        assert got.choices[0].message.content == reply.text
        assert got.choices[0].finish_reason == reply.finish_reason
        decided = got.model_extra["safeswitch"]
        assert (decided["fired"], decided["stage"]) == (reply.decision.fired, reply.decision.stage)
        assert decided["scores"] == pytest.approx(reply.decision.scores, abs=1e-4)
        assert decided["bundle_id"] == Switch.from_pretrained(switch_path()).fingerprint
    client.close()


def test_a_client_may_observe_where_it_was_allowed_to_and_not_switch_off(server: Served) -> None:
    import openai

    example = examples()[0]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.admin) as client:
        watched = client.chat.completions.create(
            **body(example), extra_body={"safeswitch": {"policy": "observe"}}
        )
        assert watched.model_extra["safeswitch"]["fired"]
        assert not watched.model_extra["safeswitch"]["switched"]
        for wish in ({"policy": "off"}, {"bundle": "absent"}):
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(**body(example), extra_body={"safeswitch": wish})
    for key, error in (
        (server.plain, openai.PermissionDeniedError),
        ("sk-guess", openai.AuthenticationError),
    ):
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) as client,
            pytest.raises(error),
        ):
            client.chat.completions.create(
                **body(example), extra_body={"safeswitch": {"policy": "observe"}}
            )


def test_thresholds_change_over_http_without_a_restart(server: Served) -> None:
    import openai

    def set_to(key: str, **asked: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{server.url}/safeswitch/thresholds", json.dumps(asked).encode(), headers
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())["thresholds"]

    before = set_to(server.admin)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.plain) as client:
        try:
            assert set_to(server.admin, thresholds={"stage1": 1.0, "watch": 1.0})["stage1"] == 1.0
            passed = client.chat.completions.create(**body(examples()[0]))
            assert not passed.model_extra["safeswitch"]["fired"]
        finally:
            assert set_to(server.admin, thresholds=before) == before
        assert client.chat.completions.create(**body(examples()[0])).model_extra["safeswitch"][
            "fired"
        ]
    for key, asked, code in (
        (server.plain, {}, 403),
        (server.admin, {"thresholds": {"stage1": 2.0}}, 400),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            set_to(key, **asked)
        assert caught.value.code == code


def test_what_the_guard_does_not_serve_is_said_so(server: Served) -> None:
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.plain) as client:
        for more in (
            {"seed": 1},
            {"extra_body": {"prompt_logprobs": 1}},
            {"extra_body": {"use_beam_search": True}},
        ):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**body(examples()[0], **more))


def test_no_byte_of_a_flagged_requests_pilot_text_leaves_the_server(
    server: Served, told: list[tuple[Example, Reply]]
) -> None:
    """Streams with random pauses and disconnects: what arrives is the beginning of what may be
    shown."""
    import openai

    draw = random.Random(0)
    plain = TransformersEngine.load(weights_path())
    flagged = [i for i, (_, reply) in enumerate(told) if reply.decision.fired]
    bare = plain.generate([told[i][0] for i in flagged], max_new_tokens=NEW, do_sample=False)
    untouched = dict(zip(flagged, bare, strict=True))
    assert len(flagged) > 10

    async def one(client: openai.AsyncOpenAI, i: int, leave_after: int | None) -> None:
        example, reply = told[i]
        text, decided = "", None
        await asyncio.sleep(draw.random())
        stream = await client.chat.completions.create(**body(example), stream=True)
        async for number, chunk in _counted(stream):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                decided = (
                    chunk.model_extra.get("safeswitch", decided) if chunk.model_extra else decided
                )
            if number == leave_after:
                await stream.close()
                break
        if not reply.decision.fired:
            assert reply.text.startswith(text)
        elif reply.decision.stage == "watch":
            before, _, after = text.partition("\n\n")
            assert reply.text.startswith(text) or (
                untouched[i].text.startswith(before) and reply.text.startswith(after)
            )
        else:
            assert reply.text.startswith(text), "pilot text was shown"
        if leave_after is None:
            assert decided is not None
            assert decided["fired"] == reply.decision.fired

    async def everything() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=server.plain, max_retries=0
        ) as client:
            picks = [draw.randrange(len(told)) for _ in range(150)]
            await asyncio.gather(
                *(one(client, i, draw.choice([None, None, 1, 2, 5, 9])) for i in picks)
            )

    asyncio.run(everything())


async def _counted(stream: Any) -> Any:
    number = 0
    async for chunk in stream:
        yield number, chunk
        number += 1


def test_the_audit_has_one_record_for_each_choice(server: Served) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.plain)
    for i, n in enumerate((1, 3)):
        asked = body(examples()[20]) | {"temperature": 0.7, "n": n}
        client.chat.completions.create(**asked, extra_headers={"X-Request-Id": f"audited-{i}"})
    client.close()
    with sqlite3.connect(server.folder / "audit.db") as connection:
        rows = connection.execute(
            "select request_id, client, choice, policy, text from safeswitch_decisions where request_id like 'audited-%'"
        ).fetchall()
    kept = ("plain", 0, "enforce", None)
    assert sorted(rows) == [("audited-0", *kept)] + [
        ("audited-1", "plain", choice, *kept[2:]) for choice in range(3)
    ]


def test_moderations_and_checks_say_what_stage_1_says_and_show_nothing_generated(
    server: Served, told: list[tuple[Example, Reply]]
) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.plain)
    some = [(e, r) for e, r in told[::6] if len(e.messages) == 1]
    found = client.moderations.create(input=[e.prompt for e, _ in some])
    for result, (_, reply) in zip(found.results, some, strict=True):
        decision = reply.decision
        score = decision.scores["stage1"]
        assert result.flagged == (score > decision.thresholds["stage1"])
        assert result.category_scores.unsafe == pytest.approx(score, abs=1e-4)
    assert {result.flagged for result in found.results} == {True, False}
    turns = [
        {"role": "user", "content": "Look it up."},
        {"role": "tool", "tool_call_id": "1", "content": "A page."},
        {"role": "user", "content": some[0][0].prompt},
    ]
    told_of = client.post(
        "/checks", cast_to=object, body={"messages": turns, "documents": ["A page."]}
    )
    assert [m["read"] for m in told_of["messages"]] == ["tool_result", "conversation"]
    tool, document = told_of["messages"][0], told_of["documents"][0]
    assert tool["category_scores"]["unsafe"] == document["category_scores"]["unsafe"]
    with pytest.raises(openai.BadRequestError, match=r"input.*512|input.*context"):
        client.moderations.create(input="word " * 600)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.blind) as blind:
        assert not blind.moderations.create(input="Hi").results[0].category_scores.model_extra
    client.close()


def test_metrics_count_decisions_beside_vllms_own(server: Served) -> None:
    asked = [
        urllib.request.Request(f"{server.url}/metrics", headers=_bearer(key))
        for key in (server.admin, server.blind)
    ]
    text = urllib.request.urlopen(asked[0]).read().decode()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(asked[1])
    assert 'safeswitch_requests_total{bundle="default",fired="true"' in text
    assert "vllm:" in text


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 1}', b'{"messages": "x"}', b'{"safeswitch": []}'],
)
def test_malformed_bodies_get_a_clear_error(server: Served, raw: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.plain}"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", raw, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert 400 <= caught.value.code < 500
    assert json.loads(caught.value.read())["error"]["message"]


def test_the_page_is_served_and_only_its_own_addresses(server: Served) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for name in FILES:
            answer = client.get(f"/ui/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert client.get("/ui/api/about").status_code == 401
        assert client.get("/ui/api/about", headers=_bearer(server.blind)).status_code == 403
        for path in ("/ui/other.js", "/ui/api/other", "/ui/api/chat"):
            assert client.get(path, headers=_bearer(server.admin)).status_code == 404, path
        about = client.get("/ui/api/about", headers=_bearer(server.plain)).json()
        assert (about["model"], about["traces"], about["policies"]) == ("nano", False, [])
        card, switch = about["bundles"]["default"], Switch.from_pretrained(switch_path())
        assert card["thresholds"] == switch.gate.thresholds()
        assert card["bundle_id"] == switch.fingerprint
        found = {
            name: client.get("/ui/api/traffic", headers=_bearer(key)).status_code
            for name, key in (("plain", server.plain), ("admin", server.admin))
        }
        assert found == {"plain": 403, "admin": 200}
    assert "the page is at http://127.0.0.1:" in (server.folder / "log").read_text()


def test_the_pages_chat_says_what_the_server_says(
    server: Served, told: list[tuple[Example, Reply]]
) -> None:
    stages = set()
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for example, reply in told[::5]:
            turns = [{"role": m.role, "content": m.content} for m in example.messages]
            asked = {"messages": turns, "max_tokens": NEW}
            answer = client.post("/ui/api/chat", json=asked, headers=_bearer(server.tuner))
            got = events(answer.text)
            text = "".join(event["text"] for event in got if event["type"] == "shown")
            decision, reads = got[-1]["decision"], [e for e in got if e["type"] == "read"]
            stages.add(reply.decision.stage if reply.decision.fired else "passed")
            assert decision["token_index"] == reply.decision.token_index
            scores = {event["stage"]: event["score"] for event in reads}
            assert scores == pytest.approx(reply.decision.scores, abs=1e-4)
            back = [event["at"] for event in got if event["type"] == "rollback"]
            assert back == ([reply.decision.token_index] if reply.decision.fired else [])
            if not (reply.decision.fired and reply.decision.stage == "watch"):
                assert text == reply.text
        assert {"stage2", "passed"} <= stages
        body = {"messages": [{"role": "user", "content": UNSAFE}]}
        off = {**body, "safeswitch": {"policy": "off"}}
        plain = client.post("/ui/api/chat", json=off, headers=_bearer(server.plain))
        assert plain.status_code == 403
        got = events(client.post("/ui/api/chat", json=off, headers=_bearer(server.tuner)).text)
        assert "I can help" in "".join(event.get("text", "") for event in got)
        assert got[-1]["decision"] is None
        for more in ({"chat_template": "x"}, {"vllm_xargs": {"safeswitch": "off"}}, {"n": 2}):
            refused = client.post(
                "/ui/api/chat", json={**body, **more}, headers=_bearer(server.admin)
            )
            assert refused.status_code == 400, more
    with sqlite3.connect(server.folder / "audit.db") as connection:
        (kept,) = connection.execute(
            "select count(*) from safeswitch_decisions where client = 'tuner'"
        ).fetchone()
    assert kept == len(told[::5])


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_the_page_is_looked_at_in_a_browser(server: Served, scheme: str, width: int) -> None:
    with (
        chromium() as browser,
        opened(browser, server.url, width, scheme, server.tuner) as page,
    ):
        ask(page, UNSAFE)
        assert "Rolled back after 3 reply tokens" in page.locator(".steps").first.inner_text()
        sides = page.locator(".reply").all_inner_texts()
        assert "I can't help with" in sides[0]
        assert "I can help with" in sides[1]
        kept(page, f"vllm-{scheme}")
        ask(page, SAFE)
        looked_at(page)
        page.click("nav a[href='#switch']")
        page.wait_for_selector("table")
        looked_at(page)


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
