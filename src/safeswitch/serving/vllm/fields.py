"""The allow-list over vLLM's HTTP interface: which routes are open, and what each field may do.

Read in vLLM 0.32.0 and 0.33.0. A route that stands in no table is closed. A field that stands in no
table is refused under ``enforce``, so that a newer vLLM cannot open a hole in silence; a test
compares the tables with vLLM's own request models. The documentation's page of request fields is
written from here.

What a field may be:

- ``shared``: acts on every run of the request, the guarded ones too (length, temperature, stops);
- ``ours``: acts on the client's own run; pilot, judge and refusal are sampled without it;
- ``neutral``: changes nothing that the guard answers for: it is part of the prompt, which is read
  as the model reads it, or says how a reply is handed out;
- ``refused``: not served, but for the values that ask for nothing;
- ``right``: for keys with the right ``extra_fields`` alone.

Knows nothing of HTTP or of vLLM's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping
from safeswitch.serving.body import MAX_STOP_CHARACTERS, MAX_STOPS

Kind = Literal["shared", "ours", "neutral", "refused", "right"]
KINDS: dict[Kind, str] = {
    "shared": "acts on every run, the guarded ones too",
    "ours": "acts on the client's own run; guarded runs are sampled without it",
    "neutral": "changes nothing that the guard answers for",
    "refused": "not served, but for the values given",
    "right": "for keys with the right extra_fields",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "number": (int, float),
    "text": (str,),
    "text or list": (str, list),
    "list": (list,),
    "object": (dict,),
    "text or object": (str, dict),
}


@dataclass(frozen=True)
class Field:
    """What one field of a request may do.

    Args:
        kind: See the module text.
        type: Name of its JSON type; null is always taken and says nothing.
        harmless: Values of a ``refused`` field that ask for nothing.
        least: Smallest number.
        most: Largest number; of a list, most entries.
        longest: Most characters of the text, or of each text in the list.
        since: First vLLM release that has the field; None where all that are served have it. An
            older one passes over it.
    """

    kind: Kind
    type: str
    harmless: tuple[object, ...] = ()
    least: float | None = None
    most: float | None = None
    longest: int | None = None
    since: str | None = None

    def fault(self, value: object, extra_fields: bool) -> str | None:
        """Why ``value`` is not served, None where it is."""
        if value is None:
            return None
        if self.kind == "refused":
            same = [v for v in self.harmless if type(v) is type(value) and v == value]
            return None if same else self._only()
        if self.kind == "right" and not extra_fields:
            return "is for keys with the right extra_fields"
        taken = _TYPES[self.type]
        # Python's bool is an int
        if not isinstance(value, taken) or (isinstance(value, bool) and bool not in taken):
            return f"takes a value of type {self.type}"
        return self._out_of_range(value)

    def _only(self) -> str:
        if not self.harmless:
            return "is not served"
        return f"is not served; it may be left out or be {_or(self.harmless)}"

    def _out_of_range(self, value: object) -> str | None:
        if isinstance(value, int | float):
            if self.least is not None and not value >= self.least:
                return f"must be {self.least:g} or more"
            if self.most is not None and not value <= self.most:
                return f"may be at most {self.most:g}"
            return None
        if isinstance(value, list) and self.most is not None and len(value) > self.most:
            return f"may have at most {self.most:g} entries"
        texts = value if isinstance(value, list) else [value]
        longest = self.longest
        if longest is not None and any(isinstance(t, str) and len(t) > longest for t in texts):
            return f"may have at most {longest} characters"
        return None


@dataclass(frozen=True)
class Route:
    """One open route.

    Args:
        method: HTTP method.
        path: Path.
        model: vLLM's request models, as ``module:Class`` below ``vllm.entrypoints``.
        fields: What their fields may do; None where the route takes no body.
        chat: Whether the prompt comes through the chat template.
        writes: Whether the model writes a reply.
        lengths: Fields that bound the reply, the one to fill in first.
    """

    method: str
    path: str
    model: tuple[str, ...] = ()
    fields: Mapping[str, Field] = field(default_factory=dict)
    chat: bool = False
    writes: bool = False
    lengths: tuple[str, ...] = ()

    def check(self, payload: JsonMapping, extra_fields: bool) -> None:
        """Refuse a body with a field that is not served.

        Args:
            payload: The body.
            extra_fields: Whether the client has that right.

        Raises:
            DataError: naming the field, and what is allowed.
        """
        for name, value in payload.items():
            if name not in self.fields:
                raise DataError(f"{name!r} is not a field of {self.path} that SafeSwitch knows")
            fault = self.fields[name].fault(value, extra_fields)
            if fault is not None:
                raise DataError(f"{name!r} {fault}")


def _or(values: Sequence[object]) -> str:
    return " or ".join("an empty object" if v == {} else repr(v).lower() for v in values)


_LOGPROBS_MOST = 20
_TOKENS_MOST = 2**31 - 1
_STOP = Field("shared", "text or list", most=MAX_STOPS, longest=MAX_STOP_CHARACTERS)
"""Stop strings: every piece of a reply is searched for each."""
_COMMON: dict[str, Field] = {
    "model": Field("neutral", "text"),
    "stream": Field("neutral", "bool"),
    "user": Field("neutral", "text"),
    "metadata": Field("neutral", "object"),
    "temperature": Field("shared", "number", least=0, most=2),
    "top_p": Field("shared", "number", least=0, most=1),
    "top_k": Field("shared", "int", least=-1, most=1_000_000),
    "cache_salt": Field("neutral", "text"),
    "watermarking": Field("ours", "bool"),
    "vllm_xargs": Field("right", "object"),
    "kv_transfer_params": Field("refused", "object"),
    "ec_transfer_params": Field("refused", "object"),
    "mm_payload": Field("refused", "text", ("tensors", "none")),
    "return_mm_kwargs": Field("refused", "bool", (False,)),
}
"""Fields of every route that writes."""
_SAMPLED: dict[str, Field] = {
    **_COMMON,
    "seed": Field("shared", "int", least=-(2**63), most=2**63 - 1),
    "stop": _STOP,
    "stop_token_ids": Field("shared", "list", most=16),
    "stream_options": Field("neutral", "object"),
    "min_p": Field("ours", "number", least=0, most=1),
    "frequency_penalty": Field("ours", "number", least=-2, most=2),
    "presence_penalty": Field("ours", "number", least=-2, most=2),
    "repetition_penalty": Field("ours", "number", least=0.01, most=10),
    "logit_bias": Field("ours", "object"),
    "ignore_eos": Field("ours", "bool"),
    "structured_outputs": Field("ours", "object"),
    "skip_special_tokens": Field("neutral", "bool"),
    "include_stop_str_in_output": Field("neutral", "bool"),
    "priority": Field("right", "int"),
    "request_id": Field("refused", "text"),
    "session_id": Field("right", "text"),
    "service_tier": Field("neutral", "text"),
    "store": Field("neutral", "bool"),
    "prompt_cache_key": Field("neutral", "text"),
    "prompt_cache_retention": Field("neutral", "text"),
    "safety_identifier": Field("neutral", "text"),
}
"""Fields of OpenAI's three."""
_COMPLETED: dict[str, Field] = {
    **_SAMPLED,
    "n": Field("shared", "int", least=1, most=128),
    "max_tokens": Field("shared", "int", least=1, most=_TOKENS_MOST),
    "response_format": Field("ours", "object"),
    "min_tokens": Field("ours", "int", least=0, most=_TOKENS_MOST),
    "bad_words": Field("ours", "list"),
    "allowed_token_ids": Field("ours", "list"),
    "repetition_detection": Field("ours", "object"),
    "length_penalty": Field("neutral", "number"),
    "logprob_token_ids": Field("neutral", "list", most=_LOGPROBS_MOST),
    "spaces_between_special_tokens": Field("neutral", "bool"),
    "return_tokens_as_token_ids": Field("neutral", "bool"),
    "return_token_ids": Field("neutral", "bool"),
    "return_token_offsets": Field("neutral", "bool"),
    # counted over the tokens of one run, while a guarded reply may be put together from several
    "return_weight_versions": Field("refused", "bool", (False,), since="0.33"),
    "stream_interval": Field("neutral", "int", least=1, most=_TOKENS_MOST),
    "use_beam_search": Field("refused", "bool", (False,)),
    "prompt_logprobs": Field("refused", "int"),
    "routed_experts_prompt_start": Field("refused", "int", (0,)),
    "thinking_token_budget": Field("refused", "int"),
}
"""Fields of chat and text completions alike."""
_TEMPLATE: dict[str, Field] = {
    "add_generation_prompt": Field("refused", "bool", (True,)),
    "continue_final_message": Field("refused", "bool", (False,)),
    "add_special_tokens": Field("refused", "bool", (False,)),
    "chat_template": Field("refused", "text"),
    "chat_template_kwargs": Field("neutral", "object"),
    "media_io_kwargs": Field("refused", "object", ({},)),
    "mm_processor_kwargs": Field("refused", "object", ({},)),
}
"""What vLLM's chat routes let a client say of the template; the end of the prompt is checked."""

CHAT = Route(
    "POST",
    "/v1/chat/completions",
    ("openai.chat_completion.protocol:ChatCompletionRequest",),
    {
        **_COMPLETED,
        **_TEMPLATE,
        "messages": Field("neutral", "list"),
        "max_completion_tokens": Field("shared", "int", least=1, most=_TOKENS_MOST),
        "tools": Field("ours", "list"),
        "tool_choice": Field("ours", "text or object"),
        "parallel_tool_calls": Field("neutral", "bool"),
        "functions": Field("refused", "list", ([],)),
        "function_call": Field("refused", "text or object", ("none",)),
        "documents": Field("neutral", "list"),
        "logprobs": Field("neutral", "bool"),
        "top_logprobs": Field("neutral", "int", least=0, most=_LOGPROBS_MOST),
        "reasoning_effort": Field("neutral", "text"),
        "include_reasoning": Field("neutral", "bool"),
        "echo": Field("neutral", "bool"),
        "return_prompt_text": Field("neutral", "bool"),
        "truncate_prompt_tokens": Field("refused", "int"),
        "truncation_side": Field("refused", "text"),
        "verbosity": Field("neutral", "text"),
        "modalities": Field("refused", "list", (["text"],)),
    },
    chat=True,
    writes=True,
    lengths=("max_completion_tokens", "max_tokens"),
)
COMPLETION = Route(
    "POST",
    "/v1/completions",
    ("openai.completion.protocol:CompletionRequest",),
    {
        **_COMPLETED,
        "prompt": Field("neutral", "text or list"),
        "suffix": Field("refused", "text", ("",)),
        "echo": Field("neutral", "bool"),
        "logprobs": Field("neutral", "int", least=0, most=_LOGPROBS_MOST),
        "best_of": Field("refused", "int", (1,)),
        "prompt_embeds": Field("refused", "text or list"),
        "add_special_tokens": Field("refused", "bool", (True,)),
        "truncate_prompt_tokens": Field("refused", "int"),
        "truncation_side": Field("refused", "text"),
    },
    writes=True,
    lengths=("max_tokens",),
)
RESPONSES = Route(
    "POST",
    "/v1/responses",
    ("openai.responses.protocol:ResponsesRequest",),
    {
        **_SAMPLED,
        "input": Field("neutral", "text or list"),
        "instructions": Field("neutral", "text"),
        "max_output_tokens": Field("shared", "int", least=1, most=_TOKENS_MOST),
        "max_tool_calls": Field("neutral", "int"),
        "prompt_cache_options": Field("neutral", "object", since="0.33"),
        "spaces_between_special_tokens": Field("neutral", "bool", since="0.33"),
        "text": Field("ours", "object"),
        "tools": Field("ours", "list"),
        "tool_choice": Field("ours", "text or object"),
        "parallel_tool_calls": Field("neutral", "bool"),
        "reasoning": Field("neutral", "object"),
        "include_reasoning": Field("neutral", "bool"),
        "include": Field("neutral", "list"),
        "top_logprobs": Field("neutral", "int", least=0, most=_LOGPROBS_MOST),
        "background": Field("refused", "bool", (False,)),
        "store": Field("refused", "bool", (False, True)),
        "previous_response_id": Field("refused", "text"),
        "prompt": Field("refused", "object"),
        "truncation": Field("refused", "text", ("disabled",)),
        "enable_response_messages": Field("refused", "bool", (False,)),
        "previous_input_messages": Field("refused", "list"),
        "chat_template_kwargs": _TEMPLATE["chat_template_kwargs"],
        "media_io_kwargs": _TEMPLATE["media_io_kwargs"],
        "mm_processor_kwargs": _TEMPLATE["mm_processor_kwargs"],
    },
    chat=True,
    writes=True,
    lengths=("max_output_tokens",),
)
MESSAGES = Route(
    "POST",
    "/v1/messages",
    ("anthropic.protocol:AnthropicMessagesRequest",),
    {
        **_COMMON,
        "messages": Field("neutral", "list"),
        "system": Field("neutral", "text or list"),
        "max_tokens": Field("shared", "int", least=1, most=_TOKENS_MOST),
        "stop_sequences": _STOP,
        "tools": Field("ours", "list"),
        "tool_choice": Field("ours", "object"),
        "output_config": Field("ours", "object"),
        "thinking": Field("neutral", "object"),
        "service_tier": Field("neutral", "text"),
        "chat_template_kwargs": _TEMPLATE["chat_template_kwargs"],
    },
    chat=True,
    writes=True,
    lengths=("max_tokens",),
)
COUNT = Route(
    "POST",
    "/v1/messages/count_tokens",
    ("anthropic.protocol:AnthropicCountTokensRequest",),
    {
        name: MESSAGES.fields[name]
        for name in (
            "model", "messages", "system", "tools", "tool_choice", "output_config", "thinking",
            "chat_template_kwargs",
        )
    },
)  # fmt: skip
TOKENIZE = Route(
    "POST",
    "/tokenize",
    (
        "serve.tokenize.protocol:TokenizeCompletionRequest",
        "serve.tokenize.protocol:TokenizeChatRequest",
    ),
    {
        **{name: field for name, field in _TEMPLATE.items() if name.endswith("kwargs")},
        "chat_template": _TEMPLATE["chat_template"],
        "model": Field("neutral", "text"),
        "prompt": Field("neutral", "text"),
        "messages": Field("neutral", "list"),
        "tools": Field("neutral", "list"),
        "return_token_strs": Field("neutral", "bool"),
        "add_special_tokens": Field("neutral", "bool"),
        "add_generation_prompt": Field("neutral", "bool"),
        "continue_final_message": Field("neutral", "bool"),
    },
)
DETOKENIZE = Route(
    "POST",
    "/detokenize",
    ("serve.tokenize.protocol:DetokenizeRequest",),
    {"model": Field("neutral", "text"), "tokens": Field("neutral", "list")},
)
MODERATIONS = Route(
    "POST",
    "/v1/moderations",
    fields={"model": Field("neutral", "text"), "input": Field("neutral", "text or list")},
)
CHECKS = Route(
    "POST",
    "/v1/checks",
    fields={
        "model": Field("neutral", "text"),
        "messages": Field("neutral", "list"),
        "documents": Field("neutral", "list"),
    },
)
PAGE_CHAT = Route(
    "POST",
    "/ui/api/chat",
    fields={
        "messages": Field("neutral", "list"),
        "max_tokens": Field("shared", "int", least=1, most=_TOKENS_MOST),
    },
    chat=True,
    writes=True,
    lengths=("max_tokens",),
)
"""The chat of the page, which only ``--ui`` opens: no part of :data:`ROUTES`."""
GATEWAYS = ("/beta/litellm_basic_guardrail_api", "/request", "/response")
"""By which gateways ask; their contracts are those of the gateways."""
_READ = ("/health", "/ping", "/v1/models", "/version", "/metrics")
ROUTES: tuple[Route, ...] = (
    CHAT,
    COMPLETION,
    RESPONSES,
    MESSAGES,
    COUNT,
    TOKENIZE,
    DETOKENIZE,
    MODERATIONS,
    CHECKS,
    *(Route("POST", path) for path in GATEWAYS),
    *(Route("GET", path) for path in _READ),
    Route("POST", "/ping"),
)
"""Every open route. Stored responses, batches, raw tokens, control and development routes:
closed."""


def find(method: str, path: str) -> Route | None:
    """The open route of a request; None where it is closed. ``HEAD`` is served as ``GET`` is."""
    payload = "GET" if method == "HEAD" else method
    return next((r for r in ROUTES if (r.method, r.path) == (payload, path)), None)
