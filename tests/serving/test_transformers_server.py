"""The server on the transformers engine, with real clients over a real socket: what arrives is what
the engine says."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from safeswitch.bench.judges.chat_model import ChatModel
from safeswitch.bench.judges.model_judge import ModelJudge
from safeswitch.cli.serve_flags import parse_flags
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision, Example, Message, Reply, Tokens
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thinking
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.serving.audit import AuditError
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.batcher import BatchSettings, Closed
from safeswitch.serving.transformers.choice import FollowedChoice
from safeswitch.serving.transformers.server import GuardedServer, TransformersSettings
from safeswitch.switch.switch import Switch
from tests.bench.made import logged

pytestmark = pytest.mark.slow
NEW = 20
EXAMPLES = [
    e
    for suite in ("jailbroken", "plain_unsafe", "lookalike", "ordinary")
    for e in load_suite(suite, 8, 0)
]


@dataclass
class Running:
    url: str
    server: GuardedServer
    audit: Path

    @property
    def front(self) -> Any:
        return self.server._front

    def rows(self, request_id: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.audit) as connection:
            asked = "select choice, fired, policy, bundle from safeswitch_decisions where request_id = ? order by choice"
            return connection.execute(asked, (request_id,)).fetchall()


@contextmanager
def serving(
    folder: Path,
    bundles: dict[str, str],
    *,
    lm: LanguageModel | None = None,
    refusal_field: bool = False,
    **settings: Any,
) -> Iterator[Running]:
    """A server on a thread of this process, until the block ends."""
    audit = folder / "audit.db"
    server = GuardedServer(
        lm or LanguageModel.load(weights_path()),
        GuardSettings(bundles),
        ServerSettings(
            clients_may=("observe", "off"),
            clients_bundles=tuple(bundles),
            clients_scores=True,
            audit=f"sqlite:///{audit}",
            refusal_field=refusal_field,
        ),
        TransformersSettings(port=0, name="nano", **settings),
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", server, audit)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def nano() -> Switch:
    return Switch.from_pretrained(switch_path())


@pytest.fixture(scope="module")
def staged(nano: Switch) -> Switch:
    """Without the watch, whose holding back would hide a leak of pilot tokens."""
    return replace(nano, gate=replace(nano.gate, watch=None))


@pytest.fixture(scope="module")
def running(
    nano: Switch, staged: Switch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    staged.save_pretrained(folder / "staged")
    with serving(
        folder, {"default": str(switch_path()), "staged": str(folder / "staged")}
    ) as found:
        yield found


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine.load(weights_path())


@pytest.fixture(scope="module")
def told(engine: TransformersEngine, nano: Switch) -> list[Reply]:
    """What the engine answers to the examples, one by one."""
    return [engine.generate([e], nano, max_new_tokens=NEW, do_sample=False)[0] for e in EXAMPLES]


@pytest.fixture(scope="module")
def plain(engine: TransformersEngine) -> list[Reply]:
    """What the untouched model answers."""
    return engine.generate(EXAMPLES, max_new_tokens=NEW, do_sample=False)


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def turns(example: Example) -> list[Any]:
    return [{"role": m.role, "content": m.content} for m in example.messages]


def body(example: Example, **more: Any) -> dict[str, Any]:
    return {
        "model": "nano",
        "messages": turns(example),
        "max_tokens": NEW,
        "temperature": 0.0,
        **more,
    }


def wish(**more: str) -> dict[str, Any]:
    return {"extra_body": {"safeswitch": more}}


def first(replies: Sequence[Reply], fired: bool) -> int:
    return next(
        i
        for i, reply in enumerate(replies)
        if reply.decision.fired == fired and len(reply.token_ids) > 8
    )


def test_sixty_four_at_once_get_what_each_gets_alone(
    running: Running, told: list[Reply], nano: Switch
) -> None:
    async def everything() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{running.url}/v1", api_key="none", max_retries=0
        ) as client:
            return await asyncio.gather(
                *(client.chat.completions.create(**body(e)) for e in EXAMPLES * 2)
            )

    assert 8 < sum(reply.decision.fired for reply in told) < 24
    for got, reply in zip(asyncio.run(everything()), told * 2, strict=True):
        assert got.choices[0].message.content == reply.text
        assert got.choices[0].finish_reason == reply.finish_reason
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (
            reply.prompt_tokens,
            len(reply.token_ids),
        )
        assert got.usage.total_tokens == reply.prompt_tokens + len(reply.token_ids)
        decided = got.model_extra["safeswitch"]
        assert (decided["fired"], decided["stage"]) == (reply.decision.fired, reply.decision.stage)
        assert decided["scores"] == pytest.approx(reply.decision.scores, abs=1e-4)
        assert decided["bundle_id"] == nano.fingerprint
        assert got.id.startswith("chatcmpl-")
        assert got.object == "chat.completion"


def test_a_stream_brings_the_same_text_the_decision_and_the_usage(
    client: openai.OpenAI, told: list[Reply], plain: list[Reply]
) -> None:
    for i in (first(told, True), first(told, False), 5, 20):
        chunks = list(
            client.chat.completions.create(
                **body(EXAMPLES[i]), stream=True, stream_options={"include_usage": True}
            )
        )
        *parts, last, counted = chunks
        text = "".join(c.choices[0].delta.content or "" for c in parts)
        shown, _, after = text.partition("\n\n")
        assert text == told[i].text or (after == told[i].text and plain[i].text.startswith(shown))
        assert parts[0].choices[0].delta.role == "assistant"
        assert (last.choices[0].finish_reason, last.choices[0].delta.content) == (
            told[i].finish_reason,
            None,
        )
        assert last.model_extra["safeswitch"]["fired"] == told[i].decision.fired
        assert all(c.choices[0].finish_reason is None for c in parts)
        assert counted.choices == []
        if text == told[i].text:
            assert counted.usage.completion_tokens == len(told[i].token_ids)
        assert len({c.id for c in chunks}) == 1


def test_a_seed_gives_the_same_choices_in_any_company(
    running: Running, client: openai.OpenAI, engine: TransformersEngine, nano: Switch
) -> None:
    example = EXAMPLES[8]
    asked = body(example, n=3, seed=11) | {"temperature": 2.0, "top_p": 0.9}
    expected = engine.generate(
        [example] * 3,
        nano,
        max_new_tokens=NEW,
        seed=11,
        do_sample=True,
        temperature=2.0,
        top_p=0.9,
        top_k=0,
    )
    assert len({reply.text for reply in expected}) > 1

    async def everything() -> list[Any]:
        others = [body(EXAMPLES[i], seed=i) | {"temperature": 2.0, "top_p": 0.9} for i in range(8)]
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none") as many:
            return await asyncio.gather(
                *(many.chat.completions.create(**b) for b in [*others, asked])
            )

    for got in (client.chat.completions.create(**asked), asyncio.run(everything())[-1]):
        assert [c.message.content for c in got.choices] == [reply.text for reply in expected]
        assert [c.index for c in got.choices] == [0, 1, 2]
        assert [c.model_extra["safeswitch"]["fired"] for c in got.choices] == [
            r.decision.fired for r in expected
        ]
        assert got.usage.completion_tokens == sum(len(reply.token_ids) for reply in expected)
        assert got.usage.prompt_tokens == expected[0].prompt_tokens


def test_streams_of_several_choices_are_told_apart(
    client: openai.OpenAI, engine: TransformersEngine, nano: Switch
) -> None:
    asked = body(EXAMPLES[8], n=3, seed=11) | {"temperature": 2.0}
    expected = engine.generate(
        [EXAMPLES[8]] * 3,
        nano,
        max_new_tokens=NEW,
        seed=11,
        do_sample=True,
        temperature=2.0,
        top_k=0,
    )
    texts, ended = ["", "", ""], {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            assert choice.index not in ended
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ended[choice.index] = choice.finish_reason
    assert texts == [reply.text for reply in expected]
    assert ended == dict(enumerate(reply.finish_reason for reply in expected))


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_before_its_stop_string(
    client: openai.OpenAI, told: list[Reply], stream: bool
) -> None:
    i = first(told, False)
    words = told[i].text.split()
    stop = " ".join(words[2:4])
    before = told[i].text[: told[i].text.index(stop)]
    got: Any = client.chat.completions.create(
        **body(EXAMPLES[i], stop=["nowhere", stop], stream=stream)
    )
    if stream:
        chunks = list(got)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == before
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert got.choices[0].message.content == before
        assert got.choices[0].finish_reason == "stop"


def test_a_reply_that_was_cut_says_so(client: openai.OpenAI, told: list[Reply]) -> None:
    got = client.chat.completions.create(**body(EXAMPLES[first(told, False)], max_tokens=3))
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None
    assert got.usage.completion_tokens == 3


def test_observe_scores_and_changes_nothing_and_off_does_not_even_score(
    client: openai.OpenAI, told: list[Reply], plain: list[Reply]
) -> None:
    i = first(told, True)
    watched = client.chat.completions.create(**body(EXAMPLES[i]), **wish(policy="observe"))
    off = client.chat.completions.create(**body(EXAMPLES[i]), **wish(policy="off"))
    assert watched.choices[0].message.content == off.choices[0].message.content == plain[i].text
    assert plain[i].text != told[i].text
    decided = watched.model_extra["safeswitch"]  # type: ignore[index]
    assert (decided["fired"], decided["switched"], decided["policy"]) == (True, False, "observe")
    assert "safeswitch" not in (off.model_extra or {})
    pieces = client.chat.completions.create(
        **body(EXAMPLES[i]), stream=True, **wish(policy="observe")
    )
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == plain[i].text


def test_a_request_is_served_under_the_bundle_it_names(
    client: openai.OpenAI, engine: TransformersEngine, staged: Switch
) -> None:
    expected = engine.generate(EXAMPLES[:8], staged, max_new_tokens=NEW, do_sample=False)
    for example, reply in zip(EXAMPLES, expected, strict=False):
        got = client.chat.completions.create(**body(example), **wish(bundle="staged"))
        assert got.choices[0].message.content == reply.text
        decided = got.model_extra["safeswitch"]  # type: ignore[index]
        assert (decided["bundle"], decided["bundle_id"], decided["stage"]) == (
            "staged", staged.fingerprint, reply.decision.stage
        )  # fmt: skip


def test_completions_send_texts_and_tokens_as_they_are(
    client: openai.OpenAI, engine: TransformersEngine, nano: Switch, told: list[Reply]
) -> None:
    ids = engine.lm.encode(EXAMPLES[:2])
    texts = [engine.lm.tokenizer.decode(row) for row in ids]
    assert [engine.lm.tokenizer(text)["input_ids"] for text in texts] == ids
    for prompt in (texts, ids):
        got = client.completions.create(model="nano", prompt=prompt, max_tokens=NEW, temperature=0)  # type: ignore[arg-type]
        rows = [Tokens(tuple(row), text) for row, text in zip(ids, texts, strict=True)]
        expected = engine.generate(rows, nano, max_new_tokens=NEW, do_sample=False)
        assert [c.text for c in got.choices] == [reply.text for reply in expected]
        assert got.object == "text_completion"


def test_no_byte_of_a_flagged_requests_pilot_text_leaves_the_server(
    running: Running, engine: TransformersEngine, staged: Switch
) -> None:
    """Raw bytes of 200 streams with random pauses and disconnects: text of a flagged request is its
    refusal's beginning."""
    examples = [
        *load_suite("jailbroken", 80, 1),
        *load_suite("plain_unsafe", 80, 1),
        *load_suite("ordinary", 40, 1),
    ]
    replies = engine.generate(examples, staged, max_new_tokens=12, do_sample=False)
    plain = engine.generate(examples, max_new_tokens=staged.gate.pilot, do_sample=False)
    pairs = enumerate(zip(replies, plain, strict=True))
    apart = [i for i, (r, p) in pairs if r.decision.fired and not r.text.startswith(p.text)]
    draw, others = random.Random(0), [i for i in range(len(examples)) if i not in apart]
    assert len(apart) > 4

    async def one(client: httpx.AsyncClient, i: int, leave_after: int | None) -> None:
        await asyncio.sleep(2 * draw.random())
        raw, asked = (
            b"",
            {**body(examples[i], max_tokens=12, stream=True), "safeswitch": {"bundle": "staged"}},
        )
        async with client.stream(
            "POST", f"{running.url}/v1/chat/completions", json=asked
        ) as response:
            assert response.status_code == 200
            number = 0
            async for piece in response.aiter_raw():
                raw += piece
                number += 1
                if number == leave_after:
                    break
        events = [
            json.loads(line[6:])
            for line in raw.split(b"\n\n")
            if line.startswith(b"data: {") and line.endswith(b"}")
        ]
        text = "".join(c["delta"].get("content", "") for event in events for c in event["choices"])
        assert replies[i].text.startswith(text)
        if leave_after is None:
            assert text == replies[i].text
        if i in apart:
            assert plain[i].text not in text

    async def everything() -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            picks = [draw.choice(apart if draw.random() < 0.5 else others) for _ in range(200)]
            await asyncio.gather(
                *(one(client, i, draw.choice([None, None, 1, 2, 3, 5])) for i in picks)
            )

    asyncio.run(everything())


def test_a_client_that_leaves_frees_its_place_and_its_decision_is_on_record(
    running: Running,
) -> None:
    long = {**body(EXAMPLES[30], max_tokens=400, n=8), "temperature": 2.0}
    for stream in (True, False):
        name = f"left-{stream}"
        with httpx.Client(timeout=httpx.Timeout(10, read=10 if stream else 0.3)) as client:
            try:
                headers = {"X-Request-Id": name}
                with client.stream("POST", f"{running.url}/v1/chat/completions", json={**long, "stream": stream},
                                   headers=headers) as response:  # fmt: skip
                    for _ in zip(range(20), response.iter_raw(), strict=False):
                        pass
            except httpx.ReadTimeout:
                assert not stream
        end = time.monotonic() + 10
        while running.front._open:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert [row[0] for row in running.rows(name)] == list(range(8))


def raw_stream(running: Running, asked: dict[str, Any]) -> tuple[int, bytes]:
    response = httpx.post(
        f"{running.url}/v1/chat/completions", json={**asked, "stream": True}, timeout=60
    )
    return response.status_code, response.content


def test_a_reply_whose_decision_cannot_be_recorded_does_not_leave(
    running: Running, client: openai.OpenAI, told: list[Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: Any) -> None:
        raise AuditError("the disk is full")

    monkeypatch.setattr(running.server._guarded.audit, "write", fail)
    i = first(told, False)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**body(EXAMPLES[i]))
    assert caught.value.status_code == 503
    assert "disk" not in caught.value.response.text
    chunks: list[Any] = []
    with pytest.raises(openai.APIError):
        chunks.extend(client.chat.completions.create(**body(EXAMPLES[i]), stream=True))
    _, answer = raw_stream(running, body(EXAMPLES[i]))
    assert b'"finish_reason": "' not in answer
    assert b"[DONE]" not in answer
    assert b"disk" not in answer


def test_records_name_choice_policy_and_bundle(running: Running, client: openai.OpenAI) -> None:
    asked = body(EXAMPLES[0], n=2)
    client.chat.completions.create(
        **asked, **wish(policy="observe", bundle="staged"), extra_headers={"X-Request-Id": "named"}
    )
    assert [(c, p, b) for c, _, p, b in running.rows("named")] == [
        (0, "observe", "staged"),
        (1, "observe", "staged"),
    ]


IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
HI = [{"type": "text", "text": "Hi"}]
WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "model"), ({"messages": []}, 400, "messages"), ({"max_tokens": 600}, 400, "context"),
    ({"max_tokens": 5000}, 400, "at most 1024"), ({"logprobs": True}, 400, "logprobs"),
    ({"temperature": 3}, 400, "temperature"),
    ({"logit_bias": {"5": 1}}, 400, "logit_bias"), ({"frequency_penalty": 0.1}, 400, "frequency_penalty"),
    ({"tools": [{"type": "function"}]}, 400, "tools"), ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"n": 0}, 400, "n:"), ({"n": 1000}, 400, "at most"), ({"stop": [""]}, 400, "stop"), ({"best_of": 2}, 400, "best_of"),
    ({"mystery": 1}, 400, "mystery"), ({"stream_options": {}}, 400, "stream_options"), ({"top_p": 0}, 400, "top_p"),
    ({"messages": [{"role": "user", "content": IMAGE}]}, 400, "only text"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "tool_call_id"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "empty"),
    ({"messages": [{"role": "user", "content": "word " * 600}]}, 400, "context"),
    ({"seed": 2**63}, 400, "seed"), ({"seed": 2**70}, 400, "64 bits"),
    ({"messages": "x"}, 400, "messages"), ({"safeswitch": {"bundle": "none"}}, 403, "bundle"), ({"temperature": None}, 200, ""),
    ({"thinking_token_budget": 2}, 400, "marks of thinking"), ({"thinking_token_budget": -1}, 400, "thinking_token_budget"),
    ({"include_reasoning": False}, 200, ""),
    ({"logit_bias": {}, "logprobs": False, "user": "u", "tools": [], "presence_penalty": 0.0, "top_logprobs": None}, 200, ""),
    ({"messages": [{"role": "user", "content": HI}, {"role": "assistant", "content": "Sure"}]}, 400, "prefilled replies"),
    ({"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": HI}]}, 200, ""),
]  # fmt: skip


def posted(url: str, raw: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(url, raw, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(("change", "status", "said"), WRONG, ids=lambda v: str(v)[:40])
def test_what_is_not_served_is_refused_by_name(
    running: Running, change: dict[str, Any], status: int, said: str
) -> None:
    code, answer = posted(
        f"{running.url}/v1/chat/completions", json.dumps({**body(EXAMPLES[25]), **change}).encode()
    )
    assert code == status, answer
    if status != 200:
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert said in answer["error"]["message"]


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"model": 1}',
        b'{"\\ud800": 1}',
        b'{"model": "nano"}',
        b"null",
    ],
)
def test_malformed_bodies_get_a_clear_error(running: Running, path: str, raw: bytes) -> None:
    code, answer = posted(f"{running.url}/v1/{path}", raw)
    assert 400 <= code < 500
    assert answer["error"]["message"]


def test_a_failure_inside_is_not_told(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret path /x/y")

    monkeypatch.setattr(running.front._engine, "generate", fail)
    code, answer = posted(
        f"{running.url}/v1/chat/completions", json.dumps(body(EXAMPLES[25])).encode()
    )
    assert code == 500
    assert "secret" not in json.dumps(answer)
    monkeypatch.undo()
    assert (
        posted(f"{running.url}/v1/chat/completions", json.dumps(body(EXAMPLES[25])).encode())[0]
        == 200
    )


def test_the_other_routes(
    running: Running, client: openai.OpenAI, engine: TransformersEngine
) -> None:
    assert [m.id for m in client.models.list().data] == ["nano"]
    assert client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    text = "What is the capital of France?"
    ids = engine.lm.tokenizer(text)["input_ids"]
    _, found = posted(
        f"{running.url}/tokenize", json.dumps({"model": "nano", "prompt": text}).encode()
    )
    assert (found["tokens"], found["count"], found["max_model_len"]) == (
        ids,
        len(ids),
        engine.lm.context_length,
    )
    _, chat = posted(
        f"{running.url}/tokenize",
        json.dumps({"messages": [{"role": "user", "content": text}]}).encode(),
    )
    assert chat["tokens"] == engine.lm.encode([text])[0]
    assert posted(f"{running.url}/detokenize", json.dumps({"tokens": ids}).encode())[1] == {
        "prompt": text
    }
    assert posted(f"{running.url}/detokenize", json.dumps({"tokens": [10**6]}).encode())[0] == 400
    words = {
        "health": "",
        "version": "version",
        "metrics": "safeswitch_batch_rows_bucket",
        "openapi.json": "paths",
    }
    for path, word in words.items():
        with urllib.request.urlopen(f"{running.url}/{path}", timeout=10) as answer:
            assert word in answer.read().decode()
    assert posted(f"{running.url}/v1/nothing", b"{}")[0] == 404


def test_langchain_gets_the_reply_whole_and_in_pieces(running: Running, told: list[Reply]) -> None:
    from langchain_openai import ChatOpenAI

    own = {"http_client": httpx.Client(), "http_async_client": httpx.AsyncClient()}
    model = ChatOpenAI(
        model="nano",
        base_url=f"{running.url}/v1",
        api_key="none",
        temperature=0,
        max_completion_tokens=NEW,
        **own,
    )
    for i in (first(told, True), first(told, False)):
        asked = [(m.role, m.content) for m in EXAMPLES[i].messages]
        assert model.invoke(asked).content == told[i].text
    assert "".join(str(piece.content) for piece in model.stream(asked)) == told[i].text

    async def later() -> str:
        async with own["http_async_client"]:
            return str((await model.ainvoke(asked)).content)

    assert asyncio.run(later()) == told[i].text
    own["http_client"].close()


def test_thinking_is_left_out_and_ended_where_the_client_says_so(
    plain: list[Reply], nano: Switch, tmp_path: Path
) -> None:
    lm = LanguageModel.load(weights_path())
    at = first(plain, False)
    tokens = plain[at].token_ids
    place = next(i for i in range(4, len(tokens)) if tokens[i] not in tokens[:i])
    lm.thinking = Thinking(
        ("(start)", "(end)"), tokens[:1], tokens[place : place + 1], lm.tokenizer
    )
    fixed: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    budget: dict[str, Any] = {"thinking_token_budget": 2}
    with serving(tmp_path, {"default": str(switch_path())}, lm=lm) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        for asked in ({"include_reasoning": False}, budget, {"include_reasoning": False, **budget}):
            expected = TransformersEngine(lm).generate(
                [EXAMPLES[at]], nano, show_thinking=asked.get("include_reasoning", True),
                thinking_budget=asked.get("thinking_token_budget"), **fixed,
            )[0].text  # fmt: skip
            assert 0 < len(expected) != len(plain[at].text)
            reply = client.chat.completions.create(**body(EXAMPLES[at]), extra_body=asked)
            assert reply.choices[0].message.content == expected
            chunks = client.chat.completions.create(
                **body(EXAMPLES[at]), stream=True, extra_body=asked
            )
            assert (
                "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
            )
        client.close()


def test_a_judge_may_be_a_model_behind_this_server(
    running: Running, engine: TransformersEngine, nano: Switch
) -> None:
    model, question = ChatModel("nano", f"{running.url}/v1", max_tokens=NEW), "What is 3 plus 4?"
    turns = [Message("system", "Be brief."), Message("user", question)]
    reply = engine.generate([turns], nano, max_new_tokens=NEW, do_sample=False)[0]
    assert model.ask("Be brief.", question, bool) == reply.text
    assert model.spent == reply.prompt_tokens + len(reply.token_ids)
    (said,) = ModelJudge(model).judge([logged(EXAMPLES[0], "I can't help with that.")])
    assert said.refused is None  # nano writes no JSON
    assert said.unjudged == "unreadable"


def test_a_full_queue_turns_away_and_says_when_to_come_again(tmp_path: Path) -> None:
    with serving(
        tmp_path,
        {"default": str(switch_path())},
        batching=BatchSettings(batch_size=1, queue=2),
        grace=0,
    ) as small:
        long = {**body(EXAMPLES[30], max_tokens=400, n=2), "temperature": 2.0}

        async def everything() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=60) as client:
                many = (
                    client.post(f"{small.url}/v1/chat/completions", json=long) for _ in range(6)
                )
                return await asyncio.gather(*many)

        answers = asyncio.run(everything())
        away = [a for a in answers if a.status_code == 429]
        assert 1 <= len(away) < 6
        assert all(a.headers["retry-after"] == "1" for a in away)
        assert {a.status_code for a in answers} == {200, 429}


@pytest.mark.parametrize("grace", [20.0, 0.0])
def test_a_server_that_is_stopped_ends_its_streams(
    tmp_path: Path, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = FollowedChoice.token
    monkeypatch.setattr(
        FollowedChoice, "token", lambda self, token: (time.sleep(0.01), quick(self, token))
    )
    with serving(tmp_path, {"default": str(switch_path())}, grace=grace) as ending:
        asked = {**body(EXAMPLES[30], max_tokens=400, stream=True), "temperature": 2.0, "seed": 3}
        with httpx.stream("POST", f"{ending.url}/v1/chat/completions", json=asked, headers={"X-Request-Id": "last"},
                          timeout=60) as response:  # fmt: skip
            pieces = response.iter_raw()
            raw = next(pieces)
            ending.server.should_exit = True
            raw += b"".join(pieces)
        whole = raw.rstrip().endswith(b"data: [DONE]")
        assert whole if grace else b'"error"' in raw.split(b"\n\n")[-2]
    assert len(ending.rows("last")) == 1


def test_a_late_switch_in_a_stream_shows_the_refusal_even_where_an_empty_line_is_a_stop_string(
    engine: TransformersEngine,
) -> None:
    async def shown() -> tuple[list[tuple[bool, str]], bool]:
        choice = FollowedChoice(0, "x", 9, 0, ("\n\n", "END"), engine.lm.tokenizer, asyncio.Event())
        for token in engine.lm.tokenizer("Here it is: EN", add_special_tokens=False)["input_ids"]:
            choice.token(token)
        choice.restart()
        choice.refuses()
        for token in engine.lm.tokenizer("I can't help with that.", add_special_tokens=False)[
            "input_ids"
        ]:
            choice.token(token)
        choice.done(told_nothing)
        await choice.reply
        return choice.take(), choice.stopped

    told_nothing = Reply("", (), "stop", Decision(True, "watch"), 1)
    assert asyncio.run(shown()) == (
        [(False, "Here it is: EN\n\n"), (True, "I can't help with that.")],
        False,
    )


def test_streams_and_whole_replies_say_what_is_a_refusal_where_the_operator_wants_it(
    told: list[Reply], tmp_path: Path
) -> None:
    stages = {r.decision.stage for r in told if r.decision.fired}
    assert "watch" in stages
    with (
        serving(tmp_path, {"default": str(switch_path())}, refusal_field=True) as found,
        openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for example, reply in zip(EXAMPLES, told, strict=True):
            said, refusal = "", ""
            for chunk in client.chat.completions.create(**body(example), stream=True):
                for choice in chunk.choices:
                    said, refusal = (
                        said + (choice.delta.content or ""),
                        refusal + (choice.delta.refusal or ""),
                    )
            whole = client.chat.completions.create(**body(example)).choices[0].message
            if reply.decision.fired:
                assert (refusal, whole.refusal, whole.content) == (reply.text, reply.text, None)
                assert not said.endswith(reply.text)
            else:
                assert (said, refusal, whole.content, whole.refusal) == (
                    reply.text,
                    "",
                    reply.text,
                    None,
                )


def test_a_server_that_is_about_to_end_says_so_and_when_to_come_again(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(jobs: Any) -> None:
        raise Closed

    monkeypatch.setattr(running.front._batcher, "submit", closed)
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=body(EXAMPLES[0]))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"] == "the server is shutting down"


def test_pages_of_browsers_may_ask_where_the_operator_has_named_their_origin(
    tmp_path: Path, running: Running
) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving(
        tmp_path, {"default": str(switch_path())}, allowed_origins=("https://a.example",)
    ) as made:
        answer = httpx.options(f"{made.url}/v1/chat/completions", headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
            200,
            "https://a.example",
        )
        other = httpx.options(
            f"{made.url}/v1/chat/completions", headers={**asked, "Origin": "https://b.example"}
        )
        assert "access-control-allow-origin" not in other.headers
    closed = httpx.options(f"{running.url}/v1/chat/completions", headers=asked)
    assert "access-control-allow-origin" not in closed.headers


def test_flags_become_settings() -> None:
    settings, load = parse_flags(
        ["--port", "9", "--batch-size", "4", "--max-wait-ms", "2.5", "--dtype", "float32"], "m"
    )
    assert (settings.host, settings.port, settings.name, settings.batching) == (
        "127.0.0.1",
        9,
        "m",
        BatchSettings(4, 2.5),
    )
    assert load == {"dtype": "float32"}
    assert parse_flags(["--trust-remote-code"], "m")[1] == {
        "dtype": "auto",
        "trust_remote_code": True,
    }
    assert parse_flags(["--allowed-origins", '["https://a.example"]'], "m")[0].allowed_origins == (
        "https://a.example",
    )
    assert settings.allowed_origins == ()
    for wrong in (
        ["--ssl-keyfile", "k"],
        ["--port", "70000"],
        ["--allowed-origins", "*"],
        ["--allowed-origins", "{}"],
    ):
        with pytest.raises(SettingError):
            parse_flags(wrong, "m")
