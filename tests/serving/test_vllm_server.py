"""`safeswitch serve` on nano, with the real OpenAI client: what arrives at the socket is what the transformers engine says."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.types import Example, Reply
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NEW = 48


def examples() -> list[Example]:
    return [e for suite in ("jailbroken", "plain_unsafe", "lookalike", "ordinary") for e in load_suite(suite, 16, 0)]


@pytest.fixture(scope="module")
def told() -> list[tuple[Example, Reply]]:
    """What the transformers engine answers, request by request."""
    engine = TransformersEngine.load(weights_path())
    replies = engine.generate(examples(), Switch.from_pretrained(switch_path()), max_new_tokens=NEW, do_sample=False)
    return list(zip(examples(), replies, strict=True))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "safeswitch.cli.main", "serve", "--model", "nano", "--switch", "nano", "--clients-may", "observe",
        "--audit", f"sqlite:///{folder / 'audit.db'}", "--port", str(port), "--enforce-eager", "--max-model-len", "512",
        "--block-size", "32",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            break
        except OSError:
            time.sleep(1)
    yield url, folder
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_flags_that_would_take_the_guard_out_are_refused_and_the_host_is_local() -> None:
    from safeswitch.core.errors import SettingError
    from safeswitch.engines.vllm.settings import GuardSettings
    from safeswitch.serving.vllm_server import serve_arguments

    guard = GuardSettings({"default": str(switch_path())})
    for flag in ("--logits-processors", "--speculative-config={}", "--model_class_overrides", "--worker-extension-cls"):
        with pytest.raises(SettingError, match="cannot be given"):
            serve_arguments(str(weights_path()), guard, [flag, "x"])
    made = serve_arguments(str(weights_path()), guard, ["--additional-config", '{"mine": 1}', "--port", "1"])
    assert made[made.index("--host") + 1] == "127.0.0.1"
    assert set(json.loads(made[made.index("--additional-config") + 1])) == {"mine", "safeswitch"}
    assert made.count("--additional-config") == 1
    assert "127.0.0.1" not in serve_arguments(str(weights_path()), guard, ["--host", "0.0.0.0"])


def body(example: Example, **more: Any) -> dict[str, Any]:
    turns = [{"role": m.role, "content": m.content} for m in example.messages]
    return {"model": "nano", "messages": turns, "max_tokens": NEW, "temperature": 0.0, **more}


def test_the_sync_client_gets_the_reply_and_the_verdict(server: tuple[str, Path], told: list[tuple[Example, Reply]]) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none")
    for example, reply in told[::4]:
        got = client.chat.completions.create(**body(example))
        assert got.choices[0].message.content == reply.text
        assert got.choices[0].finish_reason == reply.finish_reason
        verdict = got.model_extra["safeswitch"]
        assert (verdict["fired"], verdict["stage"]) == (reply.decision.fired, reply.decision.stage)
        assert verdict["scores"] == pytest.approx(reply.decision.scores, abs=1e-4)
        assert verdict["bundle_id"] == Switch.from_pretrained(switch_path()).fingerprint
    client.close()


def test_a_client_may_observe_where_it_was_allowed_to_and_not_switch_off(server: tuple[str, Path]) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none")
    example = examples()[0]
    watched = client.chat.completions.create(**body(example), extra_body={"safeswitch": {"policy": "observe"}})
    assert watched.model_extra["safeswitch"]["fired"]
    assert not watched.model_extra["safeswitch"]["switched"]
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**body(example), extra_body={"safeswitch": {"policy": "off"}})
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**body(example), extra_body={"safeswitch": {"bundle": "absent"}})
    client.close()


def test_no_byte_of_a_flagged_requests_pilot_text_leaves_the_server(
    server: tuple[str, Path], told: list[tuple[Example, Reply]]
) -> None:
    """Streams with random pauses and disconnects: what arrives is the beginning of what may be shown."""
    import openai

    draw = random.Random(0)
    plain = TransformersEngine.load(weights_path())
    flagged = [i for i, (_, reply) in enumerate(told) if reply.decision.fired]
    bare = plain.generate([told[i][0] for i in flagged], max_new_tokens=NEW, do_sample=False)
    untouched = dict(zip(flagged, bare, strict=True))
    assert len(flagged) > 10

    async def one(client: openai.AsyncOpenAI, i: int, leave_after: int | None) -> None:
        example, reply = told[i]
        text, verdict = "", None
        await asyncio.sleep(draw.random())
        stream = await client.chat.completions.create(**body(example), stream=True)
        async for number, chunk in _counted(stream):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                verdict = chunk.model_extra.get("safeswitch", verdict) if chunk.model_extra else verdict
            if number == leave_after:
                await stream.close()
                break
        if not reply.decision.fired:
            assert reply.text.startswith(text)
        elif reply.decision.stage == "watch":
            before, _, after = text.partition("\n\n")
            assert reply.text.startswith(text) or (untouched[i].text.startswith(before) and reply.text.startswith(after))
        else:
            assert reply.text.startswith(text), "pilot text was shown"
        if leave_after is None:
            assert verdict is not None
            assert verdict["fired"] == reply.decision.fired

    async def everything() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
            picks = [draw.randrange(len(told)) for _ in range(150)]
            await asyncio.gather(*(one(client, i, draw.choice([None, None, 1, 2, 5, 9])) for i in picks))

    asyncio.run(everything())


async def _counted(stream: Any) -> Any:
    number = 0
    async for chunk in stream:
        yield number, chunk
        number += 1


def test_the_audit_has_one_record_for_each_choice(server: tuple[str, Path]) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none")
    for i, n in enumerate((1, 3)):
        asked = body(examples()[20]) | {"temperature": 0.7, "n": n}
        client.chat.completions.create(**asked, extra_headers={"X-Request-Id": f"audited-{i}"})
    client.close()
    with sqlite3.connect(server[1] / "audit.db") as connection:
        rows = connection.execute(
            "select request_id, choice, policy, text from safeswitch_decisions where request_id like 'audited-%' order by id"
        ).fetchall()
    assert sorted(rows) == [("audited-0", 0, "enforce", None)] + [("audited-1", c, "enforce", None) for c in range(3)]


def test_metrics_count_decisions_beside_vllms_own(server: tuple[str, Path]) -> None:
    text = urllib.request.urlopen(f"{server[0]}/metrics").read().decode()
    assert 'safeswitch_requests_total{bundle="default",fired="true"' in text
    assert "vllm:" in text


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 1}', b'{"messages": "x"}', b'{"safeswitch": []}'])
def test_malformed_bodies_get_a_clear_error(server: tuple[str, Path], raw: bytes) -> None:
    request = urllib.request.Request(f"{server[0]}/v1/chat/completions", raw, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert 400 <= caught.value.code < 500
    assert json.loads(caught.value.read())["error"]["message"]
