"""What real clients make of refusals and decisions, with a scripted server in vLLM's place."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from pydantic import BaseModel

from safeswitch.engines.context import Context
from safeswitch.serving.keys import add_key
from safeswitch.serving.replies.shape import shape
from safeswitch.serving.settings import ServerSettings
from tests.serving.scripted import (
    FIRED,
    PASSED,
    REFUSAL,
    USAGE,
    Server,
    anthropic_client,
    guarded,
    http,
    openai_client,
)

TOLD = {"fired", "switched", "policy", "bundle", "bundle_id"}
"""All that a client without the right is told."""
SECRET = {"scores", "thresholds", "stage", "token_index"}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


class Pick(BaseModel):
    colour: str


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "pick", "parameters": SCHEMA, "strict": True}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "pick", "arguments": '{"colour": "red"}'},
}
EMPTY = {"role": "assistant", "content": "", "refusal": None, "tool_calls": [], "reasoning": None}


def completion(*messages: dict[str, Any], reason: str = "stop") -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": m,
            "finish_reason": reason,
            "stop_reason": 2,
            "logprobs": {"content": []},
            "token_ids": [],
        }
        for i, m in enumerate(messages)
    ]
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": dict(USAGE),
    }


def chunk(
    index: int | None, delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any
) -> dict[str, Any]:
    choices = (
        []
        if index is None
        else [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]
    )
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
        **more,
    }


ROLE = {"role": "assistant", "content": ""}


async def sent_events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of the events that arrive on the wire."""
    async with http(server) as client:
        text = (await client.post(path, json={**body, "stream": True})).text
    lines = [line for line in text.split("\n") if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_parse_gives_a_refusal_and_no_error_whatever_the_engine_ended_with(reason: str) -> None:
    async def ask() -> Any:
        async with openai_client(Server([FIRED], completion(EMPTY, reason=reason))) as client:
            return await client.chat.completions.parse(**ASK, response_format=Pick)

    got = asyncio.run(ask())
    (choice,) = got.choices
    assert (choice.message.parsed, choice.message.refusal, choice.message.content) == (
        None,
        REFUSAL,
        None,
    )
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert (got.usage.completion_tokens, got.usage.total_tokens) == (4 + 7, 14 + 7)
    assert set(got.model_extra["safeswitch"]) == TOLD


def test_one_choice_may_refuse_and_the_other_call_a_tool() -> None:
    called = {**EMPTY, "content": None, "tool_calls": [CALL]}

    async def ask() -> Any:
        async with openai_client(
            Server([FIRED, PASSED], completion(EMPTY, called, reason="tool_calls"))
        ) as client:
            return await client.chat.completions.parse(**ASK, n=2, tools=[TOOL])

    first, second = asyncio.run(ask()).choices
    assert (first.message.refusal, first.message.tool_calls, first.finish_reason) == (
        REFUSAL,
        None,
        "stop",
    )
    assert (second.message.refusal, second.finish_reason) == (None, "tool_calls")
    assert second.message.tool_calls[0].function.parsed_arguments == {"colour": "red"}


CALLED = [
    {"tool_calls": [{"index": 0, **CALL, "function": {"name": "pick", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"colour": "red"}'}}]},
]
STREAM = [
    chunk(0, ROLE), chunk(1, ROLE), chunk(1, CALLED[0]), chunk(1, CALLED[1]), chunk(1, {}, "tool_calls"),
    chunk(None, usage=dict(USAGE)), "data: [DONE]\n\n",
]  # fmt: skip


@pytest.mark.parametrize("at", [1, 2, 4, 5, 6])
def test_a_stream_of_a_refusal_and_a_tool_call_is_two_whole_choices_wherever_the_refusal_comes_in(
    at: int,
) -> None:
    server = Server([FIRED, PASSED], STREAM, refuse_at=at)
    events = asyncio.run(sent_events(server, CHAT, {**ASK, "n": 2, "tools": [TOOL]}))
    said = [event["choices"][0] for event in events if event["choices"]]
    refused = [choice for choice in said if choice["index"] == 0]
    assert [choice["delta"] for choice in refused] == [
        {"role": "assistant", "content": None}, {"refusal": REFUSAL}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in refused] == [None, None, "stop"]
    assert set(refused[-1]["safeswitch"]) == TOLD
    others = [choice for choice in said if choice["index"] == 1]
    assert [choice["delta"] for choice in others] == [ROLE, *CALLED, {}]
    if at < 6:  # what comes in behind the count of tokens is not in it
        usage = next(event["usage"] for event in events if not event["choices"])
        assert (usage["completion_tokens"], usage["total_tokens"]) == (4 + 7, 14 + 7)


@pytest.mark.parametrize("asked", [{"tools": [TOOL]}, {"response_format": Pick}])
def test_openais_stream_sees_a_refusal(asked: dict[str, Any]) -> None:
    server = Server([FIRED], [chunk(0, ROLE), "data: [DONE]\n\n"])

    async def ask() -> tuple[list[str], Any]:
        async with (
            openai_client(server) as client,
            client.chat.completions.stream(**ASK, **asked) as stream,
        ):
            seen = [event.type async for event in stream]
            return seen, (await stream.get_final_completion()).choices[0]

    seen, choice = asyncio.run(ask())
    assert {"refusal.delta", "refusal.done"} <= set(seen)
    assert not any(name.startswith(("content", "tool_calls")) for name in seen)
    assert (choice.message.refusal, choice.message.content, choice.message.parsed) == (
        REFUSAL,
        None,
        None,
    )
    assert choice.finish_reason == "stop"


def test_a_stream_that_is_not_refused_is_passed_on_as_it_was() -> None:
    text = [chunk(0, {"content": "{"}), chunk(0, {"content": "}"})]
    events = [chunk(0, ROLE), *text, chunk(0, {}, "stop"), chunk(None, usage=USAGE)]
    format_ = {"response_format": {"type": "json_object"}}
    got = asyncio.run(
        sent_events(Server([PASSED], [*events, "data: [DONE]\n\n"], 3), CHAT, {**ASK, **format_})
    )
    decided = got[3].pop("safeswitch")
    assert got[3]["choices"][0].pop("safeswitch") == decided
    assert got == events


def response(output: list[Any], status: str = "completed") -> dict[str, Any]:
    usage = {
        "input_tokens": 10, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 14,
    }  # fmt: skip
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": output, "status": status, "tools": [],
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None, "usage": usage,
        "parallel_tool_calls": True, "tool_choice": "auto",
    }  # fmt: skip


def spoken(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_response_that_is_refused_is_a_completed_message_with_a_refusal(status: str) -> None:
    async def ask() -> Any:
        async with openai_client(
            Server([FIRED], response([{**spoken(""), "content": []}], status))
        ) as client:
            return await client.responses.parse(model="m", input="hello", text_format=Pick)

    got = asyncio.run(ask())
    assert (got.status, got.incomplete_details, got.output_parsed, got.output_text) == (
        "completed",
        None,
        None,
        "",
    )
    (item,) = got.output
    assert [(part.type, part.refusal) for part in item.content] == [("refusal", REFUSAL)]
    assert (got.usage.output_tokens, got.usage.total_tokens) == (4 + 7, 14 + 7)
    assert set(got.model_extra["safeswitch"]) == TOLD


def test_what_vllm_makes_of_an_empty_output_is_no_part_of_a_refused_response() -> None:
    call = {
        "id": "fc_1",
        "type": "function_call",
        "name": "pick",
        "call_id": "c",
        "arguments": "",
        "status": "completed",
    }
    events: list[dict[str, Any] | str] = [
        {"type": "response.created", "sequence_number": 0, "response": response([], "in_progress")},
        {
            "type": "response.output_item.added",
            "sequence_number": 1,
            "output_index": 0,
            "item": call,
        },
        {
            "type": "response.output_item.done",
            "sequence_number": 2,
            "output_index": 0,
            "item": call,
        },
        {"type": "response.completed", "sequence_number": 3, "response": response([call])},
    ]
    got = asyncio.run(
        sent_events(Server([FIRED], events), RESPONSES, {"input": "hello", "tools": [{}]})
    )
    assert [event["sequence_number"] for event in got] == list(range(1 + 6 + 1))
    assert [item["content"][0]["type"] for item in got[-1]["response"]["output"]] == ["refusal"]
    assert got[1]["item"]["type"] == "message"


@pytest.mark.parametrize("before", [[], [spoken("It is")]])
def test_a_stream_of_responses_ends_with_the_refusal_as_an_item_of_its_own(
    before: list[Any],
) -> None:
    opening = [
        {"type": "response.created", "sequence_number": 0, "response": response([], "in_progress")}
    ]
    for item in before:
        opening += [
            {
                "type": "response.output_item.added",
                "sequence_number": 1,
                "output_index": 0,
                "item": item,
            },
            {
                "type": "response.output_item.done",
                "sequence_number": 2,
                "output_index": 0,
                "item": item,
            },
        ]
    end = {
        "type": "response.completed",
        "sequence_number": len(opening),
        "response": response(before),
    }

    async def ask() -> tuple[list[Any], Any]:
        server = Server([FIRED], [*opening, end])
        async with (
            openai_client(server) as client,
            client.responses.stream(model="m", input="hello") as stream,
        ):
            return [event async for event in stream], await stream.get_final_response()

    seen, final = asyncio.run(ask())
    assert [event.sequence_number for event in seen] == list(range(len(opening) + 7))
    assert [event.type for event in seen[len(opening) :]] == [
        "response.output_item.added", "response.content_part.added", "response.refusal.delta", "response.refusal.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert {event.output_index for event in seen[len(opening) : -1]} == {len(before)}
    assert [item.content[0].type for item in final.output] == ["output_text"] * len(before) + [
        "refusal"
    ]
    assert final.output[-1].content[0].refusal == REFUSAL
    assert set(seen[-1].response.model_extra["safeswitch"]) == TOLD


ANTHROPIC: dict[str, Any] = {**ASK, "max_tokens": 9}


def message(content: list[Any], reason: str | None) -> dict[str, Any]:
    return {
        "id": "m1", "type": "message", "role": "assistant", "model": "m", "content": content, "stop_reason": reason,
        "usage": {"input_tokens": 10, "output_tokens": 4},
    }  # fmt: skip


@pytest.mark.parametrize("reason", ["end_turn", "max_tokens", "tool_use"])
def test_a_message_that_is_refused_says_so_to_anthropics_client(reason: str) -> None:
    async def ask() -> Any:
        async with anthropic_client(
            Server([FIRED], message([{"type": "text", "text": ""}], reason))
        ) as client:
            return await client.messages.create(
                **ANTHROPIC, tools=[{"name": "pick", "input_schema": SCHEMA}]
            )

    got = asyncio.run(ask())
    assert [(block.type, block.text) for block in got.content] == [("text", REFUSAL)]
    assert (got.stop_reason, got.stop_details.explanation, got.usage.output_tokens) == (
        "refusal",
        REFUSAL,
        4 + 7,
    )
    assert set(got.model_extra["safeswitch"]) == TOLD


def test_anthropics_parse_is_given_no_text_to_read_as_the_format() -> None:
    async def ask() -> Any:
        async with anthropic_client(
            Server([FIRED], message([{"type": "text", "text": ""}], "end_turn"))
        ) as client:
            return await client.messages.parse(**ANTHROPIC, output_format=Pick)

    got = asyncio.run(ask())
    assert (got.content, got.parsed_output, got.stop_reason) == ([], None, "refusal")
    assert got.stop_details.explanation == REFUSAL


def text_block(index: int, text: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "content_block_start",
            "index": index,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": index,
            "delta": {"type": "text_delta", "text": text},
        },
        {"type": "content_block_stop", "index": index},
    ]


@pytest.mark.parametrize("before", [[], ["It is"]])
def test_a_stream_of_a_message_ends_with_the_refusal_as_a_block_of_its_own(
    before: list[str],
) -> None:
    usage = {"input_tokens": 10, "output_tokens": 4}
    events = [
        {"type": "message_start", "message": message([], None)}, *(e for text in before for e in text_block(0, text)),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]  # fmt: skip

    async def ask() -> tuple[list[Any], Any]:
        client = anthropic_client(Server([FIRED], events))
        async with client, client.messages.stream(**ANTHROPIC) as stream:
            return [event async for event in stream], await stream.get_final_message()

    seen, final = asyncio.run(ask())
    assert [block.text for block in final.content] == [*before, REFUSAL]
    assert (final.stop_reason, final.stop_details.type, final.usage.output_tokens) == (
        "refusal",
        "refusal",
        4 + 7,
    )
    starts = [event.index for event in seen if event.type == "content_block_start"]
    assert starts == list(range(len(before) + 1))
    assert seen[-1].type == "message_stop"
    assert [set(e.model_extra["safeswitch"]) for e in seen if e.type == "message_delta"] == [TOLD]


def test_an_error_in_anthropics_stream_is_one_to_its_client_and_tells_nothing() -> None:
    failed = {"type": "error", "error": {"type": "internal_error", "message": "secret"}}
    server = Server([], [{"type": "message_start", "message": message([], None)}, failed])

    async def ask() -> None:
        client = anthropic_client(server)
        async with client, client.messages.stream(**ANTHROPIC) as stream:
            async for _ in stream:
                pass

    with pytest.raises(anthropic.APIError, match="could not answer") as caught:
        asyncio.run(ask())
    assert "secret" not in str(caught.value)


REPLIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    CHAT: (ASK, completion({**EMPTY, "content": "hi"})),
    RESPONSES: ({"model": "m", "input": "hello"}, response([spoken("hi")])),
    MESSAGES: (ANTHROPIC, message([{"type": "text", "text": "hi"}], "end_turn")),
}


@pytest.mark.parametrize("path", REPLIES)
@pytest.mark.parametrize("decision", [FIRED, PASSED])
def test_scores_are_for_those_with_the_right(path: str, decision: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    rights: dict[str, dict[str, Any]] = {
        "plain": {},
        "scores": {"scores": True},
        "admin": {"admin": True},
    }
    keys = {name: add_key(file, name, **right) for name, right in rights.items()}
    body, reply = REPLIES[path]

    async def told(settings: ServerSettings, key: str = "") -> tuple[str, set[str]]:
        async with http(Server([decision], json.loads(json.dumps(reply))), settings) as client:
            got = await client.post(
                path, json=body, headers={"Authorization": f"Bearer {key}"} if key else {}
            )
        return got.text + str(got.headers), set(got.json()["safeswitch"])

    for key, sees in (("plain", False), ("scores", True), ("admin", True)):
        text, fields = asyncio.run(
            told(ServerSettings(keys=str(file), clients_scores=True), keys[key])
        )
        assert fields == (TOLD | SECRET if sees else TOLD), key
        assert sees == any(str(score) in text for score in decision.scores.values())
    for right in (True, False):
        _, fields = asyncio.run(told(ServerSettings(clients_scores=right)))
        assert fields == (TOLD | SECRET if right else TOLD)


@pytest.mark.parametrize(
    ("path", "body", "structured", "formatted", "apart"),
    [
        (CHAT, {}, False, False, False),
        (
            CHAT,
            {"tools": [], "functions": [], "response_format": None, "structured_outputs": None},
            False,
            False,
            False,
        ),
        (CHAT, {"response_format": {"type": "text"}}, False, False, False),
        (CHAT, {"tools": [{}]}, True, False, True),
        (CHAT, {"functions": [{}]}, True, False, True),
        (CHAT, {"structured_outputs": {"regex": "a"}}, True, False, True),
        (CHAT, {"response_format": {"type": "json_object"}}, True, True, True),
        (CHAT, {"response_format": {"type": "structural_tag"}}, True, True, True),
        (CHAT, {"response_format": "json"}, True, True, True),
        ("/v1/completions", {"response_format": {"type": "json_object"}}, True, True, False),
        (RESPONSES, {}, False, False, True),
        (RESPONSES, {"text": {"format": {"type": "text"}}}, False, False, True),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, True, True, True),
        (MESSAGES, {}, False, False, True),
        (MESSAGES, {"output_config": {"effort": "low"}}, False, False, True),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}, True, True, True),
        (MESSAGES, {"tools": [{}]}, True, False, True),
    ],
)
def test_what_a_request_asks_for_decides_where_a_refusal_goes(
    path: str, body: dict[str, Any], structured: bool, formatted: bool, apart: bool
) -> None:
    context = Context()
    shape(path, body, context)
    assert (context.structured, context.formatted, context.separate_refusals) == (
        structured,
        formatted,
        apart,
    )


def test_anthropics_clients_show_their_key_in_a_header_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "alice")

    async def ask(given: str) -> Any:
        server = Server([PASSED], message([{"type": "text", "text": "hi"}], "end_turn"))
        async with anthropic_client(server, ServerSettings(keys=str(file)), given) as client:
            return await client.messages.create(**ANTHROPIC)

    assert asyncio.run(ask(key)).content[0].text == "hi"
    with pytest.raises(anthropic.AuthenticationError):
        asyncio.run(ask(f"{key}x"))


def test_a_reply_in_plain_text_keeps_the_operators_rule() -> None:
    async def ask(settings: ServerSettings) -> Any:
        async with openai_client(
            Server([FIRED], completion({**EMPTY, "content": "no"})), settings
        ) as client:
            return (await client.chat.completions.create(**ASK)).choices[0].message

    plain, moved = (
        asyncio.run(ask(ServerSettings(refusal_field=field))) for field in (False, True)
    )
    assert (plain.content, plain.refusal) == ("no", None)
    assert (moved.content, moved.refusal) == (None, "no")


def test_openai_is_told_of_an_error_in_its_stream() -> None:
    async def ask() -> None:
        server = Server(
            [], [chunk(0, ROLE), 'data: {"error": {"message": "secret", "code": 500}}\n\n']
        )
        async with openai_client(server) as client:
            async for _ in await client.chat.completions.create(**ASK, stream=True, tools=[TOOL]):
                pass

    with pytest.raises(openai.APIError, match="could not answer"):
        asyncio.run(ask())


def test_what_stands_before_an_events_data_stays_there() -> None:
    named = 'event: mine\ndata: {"type": "mine", "text": "é"}\n\n'

    async def ask() -> str:
        async with http(Server([PASSED], [named], 0)) as client:
            return (await client.post("/other", json={})).text

    assert asyncio.run(ask()).replace("\\u00e9", "é") == named


def test_a_route_keeps_its_form_behind_a_root_path() -> None:
    server = Server([FIRED], response([]))

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await guarded(server, None)({**scope, "root_path": "/api"}, receive, send)

    async def ask() -> Any:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(behind), base_url="http://server"
        ) as client:
            return (await client.post("/api/v1/responses", json={"input": "hello"})).json()

    assert asyncio.run(ask())["output"][0]["content"] == [{"type": "refusal", "refusal": REFUSAL}]
