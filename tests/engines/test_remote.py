"""The engine over a server: order, bound, retries, what a refused request costs, decisions."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.core.errors import ContextLengthError, DataError, SafeSwitchError, SettingError
from safeswitch.core.types import PROMPT_END, Example, Message, ReadPoint
from safeswitch.engines.chat_server import ChatServer
from safeswitch.engines.jsonl import generate_file
from safeswitch.engines.remote import RemoteEngine
from safeswitch.switch.actuators.base import Canned, NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch
from tests.bench.chat_server import chat_server


def asked(count: int) -> list[Example]:
    return [Example(f"q{i}", (Message("user", f"Question {i}?"),), "safe") for i in range(count)]


def last_turn(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_no_more_requests_than_allowed_wait_at_once_and_replies_keep_their_order() -> None:
    waiting, most, lock = 0, 0, threading.Lock()

    def complete(turns: Any, **settings: Any) -> Any:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        time.sleep(0.02)
        with lock:
            waiting -= 1
        message = {"content": turns[-1]["content"].upper()}
        body = {"choices": [{"message": message, "finish_reason": "stop"}]}
        return SimpleNamespace(model_dump=lambda: body)

    openai = SimpleNamespace(OpenAIError=KeyError, APIStatusError=KeyError)
    server: Any = SimpleNamespace(address="http://x/v1", model="m", openai=openai)
    server.complete = complete
    replies = RemoteEngine(server, in_flight=3).generate(asked(12))
    assert [r.text for r in replies] == [f"QUESTION {i}?" for i in range(12)]
    assert most == 3


def test_a_server_that_is_busy_is_asked_again_and_greedily() -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> Any:
        seen.append(body)
        return (429, "slow down") if len(seen) == 1 else "Yes."

    with chat_server(answer) as url:
        (reply,) = RemoteEngine(ChatServer("m", url)).generate(["Hello?"], max_new_tokens=7)
    assert (reply.text, reply.prompt_tokens, reply.generated) == ("Yes.", 30, 10)
    assert len(seen) == 2
    assert (seen[-1]["temperature"], seen[-1]["max_tokens"], seen[-1]["model"]) == (0, 7, "m")


def test_a_refused_request_gets_a_row_with_the_reason_and_costs_the_others_nothing(
    tmp_path: Path,
) -> None:
    calls: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> Any:
        text = last_turn(body)
        calls[text] += 1
        return (400, "content_filter: no") if "2" in text else f"Re: {text}"

    out = tmp_path / "replies.jsonl"
    with chat_server(answer) as url:
        engine = RemoteEngine(ChatServer("m", url, retries=0), in_flight=2)
        done = generate_file(engine, asked(4), out, identity={}, max_new_tokens=5)
        again = generate_file(engine, asked(4), out, identity={}, max_new_tokens=5)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert (done.new, done.errors, again.new) == (4, 1, 0)
    assert [row.get("reply") for row in rows] == [
        "Re: Question 0?",
        "Re: Question 1?",
        None,
        "Re: Question 3?",
    ]
    assert "has filtered the request" in rows[2]["error"]
    assert all(calls[f"Question {i}?"] == 1 for i in (0, 1, 3))


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (400, "maximum context length is 8 tokens", ContextLengthError),
        (403, "flagged by the filter", DataError),
        (401, "no such key", SafeSwitchError),
        (503, "down", SafeSwitchError),
    ],
)
def test_what_a_refusal_means_is_told_apart(status: int, words: str, kind: type[Exception]) -> None:
    with chat_server(lambda body: (status, words)) as url:
        engine = RemoteEngine(ChatServer("m", url, retries=0))
        with pytest.raises(kind, match=f"the server at {url}") as error:
            engine.generate(["Hello?"])
    assert type(error.value) is kind


def test_decisions_and_refusals_of_our_server_are_read() -> None:
    told = {"fired": True, "switched": True, "stage": "stage1", "scores": {"stage1": 0.9}}

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": None, "refusal": "I cannot."}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "safeswitch": told}
        about = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        return {**about, "choices": [choice]}

    with chat_server(answer) as url:
        (reply,) = RemoteEngine(ChatServer("m", url)).generate(["Hello?"])
    assert reply.text == "I cannot."
    assert (reply.decision.fired, reply.decision.stage) == (True, "stage1")
    assert reply.decision.scores == {"stage1": 0.9}


def test_what_needs_the_model_is_refused_by_name() -> None:
    pytest.importorskip("openai", reason="openai is not installed")
    engine = RemoteEngine(ChatServer("m", "http://127.0.0.1:9/v1"))
    with pytest.raises(SettingError, match="shows no hidden states"):
        engine.collect(["Hello?"], [ReadPoint(1, PROMPT_END)], max_new_tokens=0)
    with pytest.raises(SettingError, match="a switch cannot be put around it"):
        engine.generate(["Hello?"], Switch(Gate(always=True), Canned("No.")))
    with pytest.raises(SettingError, match="takes no thinking_budget"):
        engine.generate(["Hello?"], Switch(Gate(), NoAction()), thinking_budget=3)
    begun = [Message("user", "Hello?"), Message("assistant", "Well")]
    with pytest.raises(DataError, match="prefilled reply"):
        engine.generate([begun])
