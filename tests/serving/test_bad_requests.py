"""What is wrong with one request is that request's affair: it gets a clear error, and nobody else
hears of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from benchmarks.neighbours import EVERYWHERE, EXTRA, check
from benchmarks.neighbours import settings as changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safeswitch.cli.serve_flags import parse_flags
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision, Reply
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.transformers.streaming import Gone, RowSink
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.serving.errors import ApiError
from safeswitch.serving.lanes import SHORT, Lane, Lanes
from safeswitch.serving.settings import ServerSettings
from safeswitch.serving.transformers.batcher import BatchSettings
from safeswitch.serving.transformers.choice import FollowedChoice
from safeswitch.serving.transformers.front_end import FrontEnd
from safeswitch.serving.transformers.server import Middleware
from safeswitch.switch.actuators.prompts import FramedPrompt
from safeswitch.switch.switch import Switch

CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
)
HI: dict[str, Any] = {"model": "nano", "max_tokens": 2, "temperature": 0}
TURNS = [{"role": "user", "content": "Hi"}]
Asked = tuple[str, bytes]


class Served:
    """The server without a socket, on an event loop of its own."""

    def __init__(self, lm: LanguageModel, switch: str | None = None) -> None:
        guard = GuardSettings({"default": switch or str(switch_path())})
        self.front = FrontEnd(lm, guard, BatchSettings(batch_size=16), 64)
        self._loop = asyncio.Runner()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run(self.front.stop(0))
        self._loop.close()

    def ask(self, *asked: Asked) -> list[httpx.Response]:
        """Answers to requests that come at once."""
        app = Middleware(self.front, "nano", ServerSettings())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)

        async def everything() -> list[httpx.Response]:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://made", timeout=60
            ) as client:
                headers = {"content-type": "application/json"}
                return await asyncio.gather(
                    *(client.post(p, content=raw, headers=headers) for p, raw in asked)
                )

        return self._loop.run(everything())

    def one(self, path: str, **fields: Any) -> httpx.Response:
        return self.ask((path, json.dumps(fields).encode()))[0]


@pytest.fixture(scope="module")
def nano() -> Iterator[Served]:
    with Served(LanguageModel.load(weights_path())) as made:
        yield made


def chat(text: str, **more: Any) -> Asked:
    return CHAT, json.dumps(
        {**HI, "messages": [{"role": "user", "content": text}], **more}
    ).encode()


numbers = [
    0.5,
    -0.5,
    1.0,
    2.0,
    1e-12,
    1e-300,
    1e300,
    -0.0,
    float("nan"),
    float("inf"),
    10**400,
    2**63,
    -(2**63),
    2**32,
]
odd = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(numbers), st.text(max_size=4),
    st.sampled_from(["", " ", "\0", "\ud800", "<|user|>", "</s>", "a" * 2000, [], {}, [[]], [1], ["a"], [None], {"a": 1}]),
    st.lists(st.integers(-2, 3000), max_size=4), st.lists(st.text(max_size=3), max_size=6),
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "seed", "stop", "stream",
    "stream_options", "user", "metadata", "include_reasoning", "thinking_token_budget", "safeswitch", "logprobs", "tools", "x",
)  # fmt: skip
turn = st.dictionaries(
    st.sampled_from(["role", "content", "name", "refusal", "cache_control", "tool_calls"]),
    odd,
    max_size=3,
)
turns = st.just(TURNS) | st.lists(turn | st.just(TURNS[0]), max_size=3)
drawn = st.fixed_dictionaries({}, optional={**dict.fromkeys(FIELDS, odd), "messages": turns})
bodies = drawn.map(lambda found: {"model": "nano", "max_tokens": 2, **found})
named = ("prompt", "messages", "tokens", "add_special_tokens", "model")
short = st.fixed_dictionaries({}, optional=dict.fromkeys(named, odd))
paths = st.sampled_from([CHAT, COMPLETIONS, TOKENIZE, DETOKENIZE])


def encoded(value: dict[str, Any], cut: int | None) -> bytes:
    """The body as a client might write it, or a part of it."""
    raw = json.dumps(value).encode()
    return raw if cut is None else raw[: cut % (len(raw) + 1)]


@given(
    st.lists(
        st.tuples(paths, bodies | short, st.none() | st.none() | st.integers(0, 200)),
        min_size=1,
        max_size=3,
    )
)
@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_whatever_is_sent_beside_an_honest_chat_gets_no_5xx_and_the_chat_its_reply(
    nano: Served, sent: list[tuple[str, dict[str, Any], int | None]]
) -> None:
    *answers, honest = nano.ask(
        *((path, encoded(value, cut)) for path, value, cut in sent), chat("Hi")
    )
    assert honest.status_code == 200
    for answer in answers:
        assert answer.status_code < 500, answer.text
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        else:
            assert '"error"' not in answer.text


@pytest.mark.slow
def test_beside_every_kind_of_poisoned_request_every_chat_gets_the_reply_that_it_gets_alone(
    tmp_path: Path,
) -> None:
    lines = [line for setting in changed(tmp_path) for line in check(setting, 9, 2)]
    assert len(lines) > len(EVERYWHERE)


def test_what_fails_only_when_it_is_run_fails_alone(
    nano: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = nano.front._engine.generate, []

    def fails(prompts: Sequence[Any], *given: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        if any("poison" in str(prompt) for prompt in prompts):
            raise RuntimeError("secret path /x/y")
        return run(prompts, *given, **options)

    monkeypatch.setattr(nano.front._engine, "generate", fails)
    asked = [chat("poison" if i == 5 else f"Say {i}") for i in range(12)]
    answers = nano.ask(*asked)
    assert [answer.status_code for answer in answers] == [500 if i == 5 else 200 for i in range(12)]
    assert max(sizes) > 1
    assert answers[5].json()["error"]["type"] == "server_error"
    assert "secret" not in answers[5].text


@pytest.mark.parametrize("prompt", [" ", "\n", [1], [0], "<pad>", [[1], [2, 2]]])
def test_a_blank_prompt_is_answered(nano: Served, prompt: Any) -> None:
    answer = nano.one(COMPLETIONS, **HI, prompt=prompt)
    assert answer.status_code == 200, answer.text
    assert all(choice["safeswitch"]["policy"] == "enforce" for choice in answer.json()["choices"])


def test_tokens_that_the_embedding_does_not_hold_are_refused_and_never_pad_a_batch() -> None:
    lm = LanguageModel.load(weights_path())
    lm.tokenizer.add_tokens([EXTRA])
    lm.tokenizer.pad_token = EXTRA
    lm.model.generation_config.pad_token_id = 2048
    assert (len(lm.tokenizer), lm.input_size, lm.tokenizer.pad_token_id, lm.pad_token_id) == (
        2049,
        2048,
        2048,
        2,
    )
    with Served(lm) as made:
        wrong = made.ask(
            chat(f"Hi {EXTRA}"), (COMPLETIONS, json.dumps({**HI, "prompt": EXTRA}).encode()),
            (COMPLETIONS, json.dumps({**HI, "prompt": [5, 2048]}).encode()),
        )  # fmt: skip
        right = made.ask(
            chat("Hi", max_tokens=1), chat("What is the capital of France?", max_tokens=12)
        )
    assert [answer.status_code for answer in wrong] == [400] * 3
    assert "2048" in wrong[0].json()["error"]["message"]
    assert [answer.status_code for answer in right] == [200, 200]


@pytest.mark.parametrize("length", range(440, 514, 6))
def test_what_is_let_in_fits_in_every_form_in_which_it_may_be_read(
    framed: Served, length: int
) -> None:
    words = " ".join(["word"] * (length - 40))
    answer = framed.ask(chat(words), chat("Hi"))
    assert [a.status_code for a in answer][1] == 200
    assert answer[0].status_code in (200, 400)
    if answer[0].status_code == 400:
        assert answer[0].json()["error"]["code"] == "context_length_exceeded"


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("framed")
    frame = FramedPrompt(turns=(("Hello", "Hello!"),), before="Think. " * 10)
    replace(Switch.from_pretrained(switch_path()), actuator=frame).save_pretrained(folder)
    with Served(LanguageModel.load(weights_path()), str(folder)) as made:
        yield made


def test_an_action_on_the_prompt_makes_room_for_itself_whatever_its_kind(
    framed: Served, nano: Served
) -> None:
    text = "word " * 480
    assert nano.ask(chat(text))[0].status_code == 200
    tight, other = framed.ask(chat(text), chat("Hi"))
    assert (tight.status_code, other.status_code) == (400, 200)
    assert tight.json()["error"]["code"] == "context_length_exceeded"
    raw = framed.one(COMPLETIONS, **HI, prompt="Hi")
    assert (raw.status_code, "edits conversations" in raw.text) == (400, True)


def test_a_prompt_that_cannot_fit_is_refused_before_its_tokens_are_counted(
    nano: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = nano.front.lm.longest_text
    assert longest == 512 * 13  # the context, and the longest token of the vocabulary

    def fails(*_: Any) -> None:
        raise AssertionError("nothing is to be tokenised")

    monkeypatch.setattr(nano.front.prompts, "sized", fails)
    for path, field in ((CHAT, {"messages": [{"role": "user", "content": "a" * (longest + 1)}]}),
                        (COMPLETIONS, {"prompt": "a" * (longest + 1)}), (COMPLETIONS, {"prompt": [5] * 513})):  # fmt: skip
        answer = nano.one(path, **HI, **field)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            400,
            "context_length_exceeded",
        )


STOPS: list[Any] = [
    "\u20ac\u2603",
    ["\U0001f600", "x"],
    ["a" * 250, "b" * 250, "c" * 250, "d" * 250],
    "\0",
]


@pytest.mark.parametrize("stop", STOPS, ids=lambda value: ascii(value)[:20])
def test_stop_strings_of_any_kind_are_served_at_once(nano: Served, stop: Any) -> None:
    start = time.monotonic()
    assert nano.ask(chat("Hi", stop=stop), chat("Hi", stop=stop, stream=True))[0].status_code == 200
    assert (
        time.monotonic() - start < 5
    )  # a table of each string's positions for each token takes longer


def test_a_reply_that_has_come_to_its_stop_string_is_not_run_on(nano: Served) -> None:
    asked = [chat(example.prompt, max_tokens=40) for example in load_suite("ordinary", 12, 0)]
    told = [answer.json() for answer in nano.ask(*asked)]
    (_, raw), whole = max(
        zip(asked, told, strict=True), key=lambda pair: pair[1]["usage"]["completion_tokens"]
    )
    text = whole["choices"][0]["message"]["content"]
    stop = text.split()[2]
    cut = nano.one(CHAT, **json.loads(raw), stop=stop).json()
    assert cut["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]


def test_a_row_that_was_rolled_back_is_not_ended_by_the_stop_string_of_what_it_had_shown() -> None:
    class Rows:
        leaving = torch.tensor([1])

    async def ended() -> tuple[list[bool], list[bool]]:
        lm = LanguageModel.load(weights_path())
        made = [
            FollowedChoice(i, "x", 9, 0, ["Hi"], lm.tokenizer, asyncio.Event()) for i in range(2)
        ]
        for choice in made:
            for token in lm.tokenizer("Hi there", add_special_tokens=False)["input_ids"]:
                choice.token(token)
        stopped = [choice.stopped for choice in made]
        gone = Gone(Rows(), [RowSink(choice) for choice in made])  # type: ignore[arg-type]
        found = gone(torch.zeros(2, 3), None).tolist()
        made[1].restart()
        return [*stopped, made[1].stopped], found

    assert asyncio.run(ended()) == ([True, True, False], [True, False])


def test_a_choice_begins_anew_only_while_nothing_of_it_has_been_handed_out() -> None:
    async def renewed() -> list[bool]:
        lm = LanguageModel.load(weights_path())
        fresh, shown, done = (
            FollowedChoice(i, "x", 9, 0, [], lm.tokenizer, asyncio.Event()) for i in range(3)
        )
        shown.token(5)
        done.done(Reply("", (), "stop", Decision(False, "none"), 1))
        return [choice.renew() for choice in (fresh, shown, done)]

    assert asyncio.run(renewed()) == [True, False, False]


@pytest.mark.parametrize(
    ("temperature", "status"), [(1e-300, 400), (1e-12, 200), (0.005, 200), (0.01, 200), (-0.0, 200)]
)
def test_temperatures_next_to_nothing_take_the_likeliest_token(
    nano: Served, temperature: float, status: int
) -> None:
    answer = nano.one(CHAT, **{**HI, "max_tokens": 12, "temperature": temperature}, messages=TURNS)
    assert answer.status_code == status
    if status == 200 and temperature < 0.01:
        greedy = nano.one(CHAT, **{**HI, "max_tokens": 12}, messages=TURNS)
        assert answer.json()["choices"] == greedy.json()["choices"]


EXTREME: list[dict[str, Any]] = [
    {"top_p": 1e-30, "temperature": 1.0},
    {"seed": 2**63 - 1, "n": 3},
    {"seed": -(2**63), "n": 2},
]


@pytest.mark.parametrize("more", EXTREME, ids=str)
def test_extreme_sampling_is_served(nano: Served, more: dict[str, Any]) -> None:
    assert nano.ask(chat("Hi", **more))[0].status_code == 200


CACHED = {"type": "ephemeral"}
HARMLESS: list[tuple[dict[str, Any], int]] = [
    ({"name": "bob"}, 200), ({"name": None}, 200), ({"cache_control": CACHED}, 200), ({"cache_control": None}, 200),
    ({"content": [{"type": "text", "text": "Hi", "cache_control": {**CACHED, "ttl": "1h"}}]}, 200),
    ({"name": "two words"}, 400), ({"name": "n" * 65}, 400), ({"name": 1}, 400), ({"cache_control": {"type": "x"}}, 400),
    ({"cache_control": {**CACHED, "x": 1}}, 400),
]  # fmt: skip


@pytest.mark.parametrize(("more", "status"), HARMLESS, ids=lambda value: str(value)[:40])
def test_fields_of_real_clients_that_ask_for_nothing_are_taken(
    nano: Served, more: dict[str, Any], status: int
) -> None:
    answer = nano.one(CHAT, **HI, messages=[{**TURNS[0], **more}])
    assert answer.status_code == status, answer.text
    if status == 200:
        plain = nano.one(CHAT, **HI, messages=TURNS).json()
        assert (answer.json()["choices"], answer.json()["usage"]) == (
            plain["choices"],
            plain["usage"],
        )


def test_long_work_does_not_hold_up_short_work_nor_queue_without_end() -> None:
    async def everything() -> tuple[str, list[bool], str]:
        lanes = Lanes()
        slow = [
            asyncio.create_task(lanes.run(SHORT + 1, lambda: time.sleep(0.1))) for _ in range(20)
        ]
        await asyncio.sleep(0)
        quick = await asyncio.wait_for(lanes.run(SHORT, lambda: "done"), 0.5)
        ended = await asyncio.gather(*slow, return_exceptions=True)
        after = await lanes.run(SHORT + 1, lambda: "again")
        lanes.close()
        return quick, [isinstance(end, ApiError) and end.status == 429 for end in ended], after

    quick, away, after = asyncio.run(everything())
    assert (quick, after) == ("done", "again")
    assert away == [False] * 8 + [True] * 12


def test_what_fails_beside_the_event_loop_fails_where_it_was_asked_for() -> None:
    async def asked() -> str:
        lane = Lane("made", 1, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0)
        return await lane.run(lambda: "room again")

    assert asyncio.run(asked()) == "room again"


def test_the_server_takes_a_chat_template_as_the_other_commands_do(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    _, load = parse_flags(["--chat-template", str(file)], "m")
    with Served(LanguageModel.load(weights_path(), **load)) as made:
        found = made.one(TOKENIZE, messages=TURNS).json()["tokens"]
        assert found == made.front.lm.tokenizer("[Hi]", add_special_tokens=False)["input_ids"]
    assert parse_flags(["--chat-template", "plain"], "m")[1] == {
        "dtype": "auto",
        "chat_template": "plain",
    }
    with pytest.raises(SettingError, match="chat template"):
        parse_flags(["--chat-template", str(tmp_path / "absent")], "m")
