"""What clients may send: OpenAI's requests, as far as the transformers server honours them.

A field that would change the reply and is not honoured is refused by name, unless it holds the
value that changes nothing; so is a field that nobody knows. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from safeswitch.core.types import Message, Role
from safeswitch.data.tool_results import framed
from safeswitch.serving.body import MAX_STOPS

NEUTRAL: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False,), "top_logprobs": (0,),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False), "functions": ([],), "function_call": ("none",), "modalities": (["text"],),
    "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": (), "web_search_options": (), "best_of": (1,),
    "echo": (False,), "suffix": ("",), "store": (False,), "service_tier": ("auto", "default"), "top_k": (0, -1), "min_p": (0,),
    "repetition_penalty": (1,),
}  # fmt: skip
"""Fields that are not honoured, each with the values besides null that ask for nothing."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "assistant": "assistant",
}

Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0)]
Metadata = Annotated[dict[str, str], Field(max_length=16)]
# Lists end at their first fault: an error for each of a hundred thousand entries would cost more
# than the entries.
Tokens = Annotated[list[Token], Field(fail_fast=True)]
Texts = Annotated[list[Text], Field(fail_fast=True)]


def not_served(field: str, reason: str) -> PydanticCustomError:
    """A fault with the name of the field in its context."""
    return PydanticCustomError("not_served", "{reason}", {"field": field, "reason": reason})


class Strict(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid")


class CacheControl(Strict):
    """Where a client would have the prompt cached; taken, and without effect."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class FunctionCall(Strict):
    """What a tool was called with."""

    name: Text
    arguments: str


class ToolCall(Strict):
    """One call of a tool in an assistant's turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: FunctionCall

    @property
    def text(self) -> str:
        """The call in one line."""
        return f"{self.function.name}({self.function.arguments})"


class ChatMessage(Strict):
    """A turn of a conversation; a reply of this server may be sent back as it came. The model is
    not told ``name``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    refusal: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")] | None = (
        None
    )
    cache_control: CacheControl | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] = []
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_empty(cls, value: object) -> object:
        """Drop the empty fields that clients send back with a reply; name parts that are not
        text."""
        if not isinstance(value, dict):
            return value
        content = value.get("content")
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise not_served("content", "only text parts are served in messages")
        empty = ("tool_calls", "function_call", "audio", "annotations")
        return {k: v for k, v in value.items() if k not in empty or v not in (None, [])}

    @model_validator(mode="after")
    def _tools_where_they_belong(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise not_served("tool_calls", "only turns of the assistant call tools")
        if self.role == "tool" and not self.tool_call_id:
            raise not_served("tool_call_id", "the result of a tool needs its tool_call_id")
        return self

    @property
    def as_role(self) -> Role:
        """Whose turn it is for the model, which knows three: what a tool returns comes with the
        user's turns."""
        return _ROLES[self.role]

    @property
    def text(self) -> str:
        """The turn's plain text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content if self.content is not None else self.refusal or ""


def turns_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The turns as the chat template takes them; those without tools as they came.

    What a tool was called with follows the assistant's text in lines of its own; what it returned
    comes as a turn of the user's. Templates want turns to alternate, so neighbours of one role are
    one turn.
    """
    turns: list[Message] = []
    before = ""
    for message in messages:
        turn = _turn(message)
        beside_tool = "tool" in (message.role, before)
        if beside_tool and turns and turns[-1].role == turn.role:
            turns[-1] = turns[-1].around(after=f"\n\n{turn.content}")
        else:
            turns.append(turn)
        before = message.role
    return turns


def _turn(message: ChatMessage) -> Message:
    if message.role == "tool":
        return framed(message.text)
    lines = [message.text] if message.text else []
    for call in message.tool_calls:
        lines.append(call.text)
    return Message(message.as_role, "\n".join(lines))


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampled(Strict):
    """What both kinds of completion share."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: Metadata | None = None
    include_reasoning: bool = True
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_honoured(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, given in value.items():
            if given is None and (name in NEUTRAL or name in cls.model_fields):
                continue
            if name not in NEUTRAL:
                kept[name] = given
            elif given not in NEUTRAL[name]:
                raise not_served(name, f"{name} is not served")
        return kept

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise not_served("stream_options", "stream_options needs stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def limit(self) -> int | None:
        """Most reply tokens, where the client says."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    """``POST /v1/completions``: prompts as texts or tokens, without a chat template."""

    prompt: (
        Text
        | Annotated[
            Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True)], Field(min_length=1)
        ]
    )

    @property
    def limit(self) -> int | None:
        """Most reply tokens, where the client says."""
        return self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]
        return list(self.prompt)


class TokenizeRequest(Strict):
    """``POST /tokenize``: a text, or a conversation through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_them(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise not_served("prompt", "give prompt or messages")
        return self

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.prompt or "") + sum(len(message.text) for message in self.messages or ())


class DetokenizeRequest(Strict):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: Tokens
