"""Real clients that ask for replies that are parsed, on `safeswitch serve` with vLLM and nano:
refusals, and what is safe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from benchmarks.running import serving
from pydantic import BaseModel

from safeswitch.core.types import Example, Reply
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NEW = 96
GRAMMAR = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
"""Without white space nano, which knows no JSON, comes to the end of an object."""
TOLD = {"fired", "switched", "policy", "bundle", "bundle_id"}


class Pick(BaseModel):
    colour: Literal["red", "blue"]
    count: Literal[1, 2]


FUNCTION = {
    "name": "pick",
    "description": "Picks.",
    "parameters": Pick.model_json_schema() | {"additionalProperties": False},
}
TOOL = {"type": "function", "function": {**FUNCTION, "strict": True}}
NAMED = {"type": "function", "function": {"name": "pick"}}
CHOICES: list[Any] = ["auto", "required", NAMED]
ANTHROPIC_TOOL = {"name": "pick", "description": "Picks.", "input_schema": FUNCTION["parameters"]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "pythonic")
    flags = ("--clients-may", "off", *tools, "--structured-outputs-config", GRAMMAR)
    with serving(tmp_path_factory.mktemp("server"), "vllm", *flags) as running:
        yield running.url


@pytest.fixture(scope="module")
def told() -> list[tuple[Example, Reply]]:
    """What the transformers engine answers, request by request; nano's template shows no tools, so
    they change no prompt."""
    examples = [
        e for suite in ("jailbroken", "plain_unsafe", "ordinary") for e in load_suite(suite, 24, 0)
    ]
    engine = TransformersEngine.load(weights_path())
    replies = engine.generate(
        examples, Switch.from_pretrained(switch_path()), max_new_tokens=NEW, do_sample=False
    )
    return list(zip(examples, replies, strict=True))


@pytest.fixture(scope="module")
def flagged(told: list[tuple[Example, Reply]]) -> tuple[list[Any], str]:
    """A request that is refused before its reply has begun, and the refusal."""
    return next(
        (turns(e), r.text) for e, r in told if r.decision.fired and r.decision.stage == "stage2"
    )


@pytest.fixture(scope="module")
def safe(told: list[tuple[Example, Reply]]) -> tuple[list[Any], str]:
    """A request that no stage flags, and its reply."""
    cleared = (
        (e, r) for e, r in told if not r.decision.fired and "stage2" not in r.decision.scores
    )
    return next((turns(e), r.text) for e, r in cleared if len(r.token_ids) > 3)


def turns(example: Example) -> list[Any]:
    return [{"role": m.role, "content": m.content} for m in example.messages]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def chat(messages: list[Any], **more: Any) -> dict[str, Any]:
    return {"model": "nano", "messages": messages, "max_tokens": NEW, "temperature": 0.0, **more}


OFF = {"safeswitch": {"policy": "off"}}
"""Wish for the server as it is without the guard: what safe requests are measured by, whatever nano
makes of a grammar."""


def said(choice: Any) -> tuple[Any, ...]:
    calls = [
        (call.function.name, call.function.arguments) for call in choice.message.tool_calls or []
    ]
    return choice.message.content, choice.message.refusal, calls, choice.finish_reason


def streamed(chunks: Any) -> tuple[str, dict[int, str], str | None]:
    """Text, arguments of each call, and the end of a stream of one choice."""
    text, calls, end = "", dict[int, str](), None
    for chunk in chunks:
        for choice in chunk.choices:
            assert not choice.delta.refusal
            text += choice.delta.content or ""
            end = choice.finish_reason or end
            for call in choice.delta.tool_calls or []:
                calls[call.index] = calls.get(call.index, "") + (call.function.arguments or "")
    return text, calls, end


def is_refusal(choice: Any, text: str) -> None:
    message = choice.message
    assert (message.refusal, message.content, message.tool_calls, choice.finish_reason) == (
        text,
        None,
        None,
        "stop",
    )
    assert getattr(message, "parsed", None) is None


def test_parse_sees_a_refusal_or_the_object(client: openai.OpenAI, flagged: Any, safe: Any) -> None:
    got = client.chat.completions.parse(**chat(flagged[0]), response_format=Pick)
    is_refusal(got.choices[0], flagged[1])
    assert 0 < got.usage.completion_tokens < NEW
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert set(got.model_extra["safeswitch"]) == TOLD
    answered = (
        client.chat.completions.parse(**chat(safe[0]), response_format=Pick).choices[0].message
    )
    assert isinstance(answered.parsed, Pick)
    assert answered.refusal is None


def test_the_async_client_sees_the_same(url: str, flagged: Any, safe: Any) -> None:
    async def both() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as client:
            asked = (
                client.chat.completions.parse(**chat(m), response_format=Pick)
                for m in (flagged[0], safe[0])
            )
            return tuple(await asyncio.gather(*asked))

    refused, answered = asyncio.run(both())
    is_refusal(refused.choices[0], flagged[1])
    assert isinstance(answered.choices[0].message.parsed, Pick)


@pytest.mark.parametrize("choice", CHOICES, ids=("auto", "required", "named"))
def test_a_request_with_tools_is_refused_without_a_call(
    client: openai.OpenAI, flagged: Any, safe: Any, choice: Any
) -> None:
    asked = {"tools": [TOOL], "tool_choice": choice}
    for n in (1, 2):
        warm = {} if n == 1 else {"n": n, "temperature": 0.01}
        got = client.chat.completions.create(**chat(flagged[0], **asked) | warm)
        assert [c.index for c in got.choices] == list(range(n))
        for one in got.choices:
            is_refusal(one, flagged[1] if n == 1 else one.message.refusal)
            assert one.message.refusal
    ways = ({}, {"extra_body": OFF})
    answered, bare = (
        client.chat.completions.create(**chat(safe[0], **asked), **off).choices[0] for off in ways
    )
    assert said(answered) == said(bare)
    assert answered.message.refusal is None
    if choice == "auto":
        assert (answered.message.content, answered.message.tool_calls) == (safe[1], None)
    elif choice == NAMED:
        assert isinstance(
            Pick.model_validate_json(answered.message.tool_calls[0].function.arguments), Pick
        )


@pytest.mark.parametrize(
    "asked", [{"response_format": Pick}, *({"tools": [TOOL], "tool_choice": c} for c in CHOICES)]
)
def test_streams_see_the_same(
    client: openai.OpenAI, flagged: Any, safe: Any, asked: dict[str, Any]
) -> None:
    counted = {"stream_options": {"include_usage": True}}
    with client.chat.completions.stream(**chat(flagged[0], **asked, **counted)) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_completion()
    is_refusal(final.choices[0], flagged[1])
    assert "refusal.done" in seen
    assert not any(name.startswith(("content", "tool_calls")) for name in seen)
    assert 0 < final.usage.completion_tokens < NEW
    if "response_format" in asked:
        with client.chat.completions.stream(**chat(safe[0], **asked)) as stream:
            assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pick)
        return
    ways = ({}, {"extra_body": OFF})
    guarded, bare = (
        streamed(client.chat.completions.create(**chat(safe[0], **asked), stream=True, **off))
        for off in ways
    )
    assert guarded == bare
    assert guarded[0] == (safe[1] if asked["tool_choice"] == "auto" else "")


def test_of_a_structured_reply_that_is_refused_late_no_part_is_shown(
    client: openai.OpenAI, told: list[tuple[Example, Reply]]
) -> None:
    late = [(turns(e), r.text) for e, r in told if r.decision.fired and r.decision.stage == "watch"]
    assert late, "no example is refused by the watch"
    for messages, text in late:
        with client.chat.completions.stream(**chat(messages, tools=[TOOL])) as stream:
            is_refusal(stream.get_final_completion().choices[0], text)


def respond(messages: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "model": "nano",
        "input": messages,
        "max_output_tokens": NEW,
        "temperature": 0.0,
        **more,
    }


RESPONSES_TOOL = {"type": "function", "strict": True, **FUNCTION}


@pytest.mark.parametrize(
    "asked",
    [{}, {"tools": [RESPONSES_TOOL], "tool_choice": "required"}, {"tools": [RESPONSES_TOOL], "tool_choice": "auto"},
     {"tools": [RESPONSES_TOOL], "tool_choice": {"type": "function", "name": "pick"}}, {"text_format": Pick}],
    ids=("plain", "required", "auto", "named", "format"),
)  # fmt: skip
def test_responses_hold_the_refusal_as_a_part_of_its_own(
    client: openai.OpenAI, flagged: Any, safe: Any, asked: Any
) -> None:
    def streamed(messages: list[Any]) -> Any:
        with client.responses.stream(**respond(messages, **asked)) as stream:
            numbers = [event.sequence_number for event in stream]
            assert numbers == list(range(len(numbers)))
            return stream.get_final_response()

    ways: list[Callable[[list[Any]], Any]] = [
        lambda m: client.responses.parse(**respond(m, **asked)),
        streamed,
    ]
    for ask in ways:
        refused = ask(flagged[0])
        (item,) = refused.output
        assert [(part.type, part.refusal) for part in item.content] == [("refusal", flagged[1])]
        assert (refused.status, refused.output_text) == ("completed", "")
        assert set(refused.model_extra["safeswitch"]) == TOLD
        if asked.get("tool_choice") == "required":
            continue  # nano's list of calls has no end, and an unfinished one is an error to this client, guarded or not
        answered = ask(safe[0])
        if "text_format" in asked:
            assert isinstance(answered.output_parsed, Pick)
        elif asked.get("tool_choice") not in (None, "auto"):
            assert isinstance(Pick.model_validate_json(answered.output[-1].arguments), Pick)
        else:
            assert answered.output_text == safe[1]


def speak(messages: list[Any], **more: Any) -> dict[str, Any]:
    system = [turn["content"] for turn in messages if turn["role"] == "system"]
    others = [turn for turn in messages if turn["role"] != "system"]
    given = {"system": system[0]} if system else {}
    return {
        "model": "nano",
        "messages": others,
        "max_tokens": NEW,
        "extra_body": {"temperature": 0.0},
        **given,
        **more,
    }


@pytest.mark.parametrize(
    "asked",
    [{}, *({"tools": [ANTHROPIC_TOOL], "tool_choice": c} for c in (
        {"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "pick"},
    ))],
    ids=("plain", "auto", "any", "named"),
)  # fmt: skip
def test_anthropics_client_sees_that_it_was_refused(
    claude: anthropic.Anthropic, flagged: Any, safe: Any, asked: Any
) -> None:
    def streamed(messages: list[Any]) -> Any:
        with claude.messages.stream(**speak(messages, **asked)) as stream:
            return stream.get_final_message()

    ways: list[Callable[[list[Any]], Any]] = [
        lambda m: claude.messages.create(**speak(m, **asked)),
        streamed,
    ]
    for ask in ways:
        refused = ask(flagged[0])
        assert [(block.type, block.text) for block in refused.content] == [("text", flagged[1])]
        assert (refused.stop_reason, refused.stop_details.explanation) == ("refusal", flagged[1])
        assert 0 < refused.usage.output_tokens < NEW
        answered = ask(safe[0])
        if asked.get("tool_choice", {"type": "auto"}) == {"type": "auto"}:
            assert (answered.content[0].text, answered.stop_reason) == (safe[1], "end_turn")
        elif asked["tool_choice"]["type"] == "tool":
            assert answered.stop_reason == "tool_use"
            assert isinstance(Pick.model_validate(answered.content[-1].input), Pick)
        else:
            assert answered.stop_reason != "refusal"  # nano's list of calls has no end


def test_anthropics_parse_sees_a_refusal_or_the_object(
    claude: anthropic.Anthropic, flagged: Any, safe: Any
) -> None:
    def streamed(messages: list[Any]) -> Any:
        with claude.messages.stream(**speak(messages), output_format=Pick) as stream:
            return stream.get_final_message()

    ways: list[Callable[[list[Any]], Any]] = [
        lambda m: claude.messages.parse(**speak(m), output_format=Pick),
        streamed,
    ]
    for ask in ways:
        refused = ask(flagged[0])
        assert (refused.content, refused.stop_reason, refused.parsed_output) == (
            [],
            "refusal",
            None,
        )
        assert refused.stop_details.explanation == flagged[1]
        assert isinstance(ask(safe[0]).parsed_output, Pick)


@pytest.mark.parametrize("responses", [False, True], ids=("chat", "responses"))
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_raises_its_refusal_or_gives_the_object(
    url: str,
    flagged: Any,
    safe: Any,
    method: Literal["json_schema", "function_calling"],
    responses: bool,
) -> None:
    from langchain_openai import ChatOpenAI
    from langchain_openai.chat_models.base import OpenAIRefusalError
    from pydantic import SecretStr

    model = ChatOpenAI(
        model="nano", base_url=f"{url}/v1", api_key=SecretStr("none"), temperature=0, max_completion_tokens=NEW, max_retries=0,
        use_responses_api=responses,
    )  # fmt: skip
    structured = model.with_structured_output(Pick, method=method, strict=True)
    with pytest.raises(OpenAIRefusalError) as caught:
        structured.invoke(flagged[0])
    assert flagged[1] in str(caught.value)
    assert isinstance(structured.invoke(safe[0]), Pick)
    if method == "function_calling" and not responses:
        assert not list(
            structured.stream(flagged[0])
        )  # LangChain reads no refusal from chunks of a chat
    else:
        with pytest.raises(OpenAIRefusalError):
            list(structured.stream(flagged[0]))
    assert isinstance(list(structured.stream(safe[0]))[-1], Pick)
