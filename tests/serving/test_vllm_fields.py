"""The allow-list over vLLM's interface: complete, strict, and as documented."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from safeswitch.core.errors import DataError
from safeswitch.engines.vllm.settings import VERSIONS
from safeswitch.serving.vllm.fields import (
    CHAT,
    COMPLETION,
    MESSAGES,
    RESPONSES,
    ROUTES,
    Route,
    find,
)
from tests.engines.vllm_made import needs_vllm

# importing vLLM warns of its own dependencies
pytestmark = pytest.mark.filterwarnings("ignore")
BODIES = [route for route in ROUTES if route.model]


def clients_fields(route: Route) -> set[str]:
    """What the vendors' own clients may send to a route that vLLM answers."""
    from openai.types import completion_create_params, responses
    from openai.types.chat import completion_create_params as chat

    known: dict[str, set[str]] = {
        "/v1/chat/completions": set(chat.CompletionCreateParamsBase.__annotations__) | {"stream"},
        "/v1/completions": set(completion_create_params.CompletionCreateParamsBase.__annotations__),
        "/v1/responses": set(
            responses.response_create_params.ResponseCreateParamsBase.__annotations__
        ),
        "/v1/messages": {"service_tier"},
    }
    return known.get(route.path, set())


def fields_of_newer_releases(route: Route) -> set[str]:
    """Fields that the installed vLLM does not have yet."""
    import vllm

    known = [at for at, name in enumerate(VERSIONS) if vllm.__version__.startswith(name)]
    later = VERSIONS[max(known) + 1 :]
    return {name for name, field in route.fields.items() if field.since in later}


@needs_vllm
@pytest.mark.parametrize("route", BODIES, ids=lambda route: route.path)
def test_every_field_of_vllms_request_models_stands_in_the_table(route: Route) -> None:
    theirs: set[str] = set()
    for name in route.model:
        module, _, model = name.partition(":")
        found = importlib.import_module(f"vllm.entrypoints.{module}")
        theirs |= set(getattr(found, model).model_fields)
    assert theirs - set(route.fields) == set(), "a field that nobody has judged"
    newer = fields_of_newer_releases(route)
    assert newer & theirs == set(), "older than its mark says"
    ours = set(route.fields) - theirs - newer
    # what vLLM takes as an extra and does not read, and clients may send
    more = {"metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"}
    more |= {"prompt_cache_retention", "stream_options", "user", "best_of"}
    assert ours <= clients_fields(route) | more, "a field that is gone"


@needs_vllm
def test_every_sampling_parameter_is_judged_once() -> None:
    from vllm.sampling_params import SamplingParams

    from safeswitch.engines.vllm import sampling

    sets = [sampling.SHARED, sampling.NEUTRAL, sampling.BENDING, frozenset(sampling.REFUSED)]
    assert frozenset.union(*sets) == frozenset(SamplingParams.__struct_fields__)
    assert sum(map(len, sets)) == len(SamplingParams.__struct_fields__)


@needs_vllm
def test_every_route_of_vllms_server_that_writes_is_open_by_decision_or_closed() -> None:
    """The open ones exist in vLLM; anything else is not found in the table."""
    for path in ("/inference/v1/generate", "/invocations", "/collective_rpc", "/update_weights"):
        assert find("POST", path) is None
    for path in ("/v1/decisions", "/v1/systemone", "/generative_scoring"):
        assert find("POST", path) is None
    for path in ("/sleep", "/v1/load_lora_adapter", "/v1/chat/completions/batch", "/pause"):
        assert find("POST", path) is None
    assert find("GET", "/v1/responses/resp_1") is None
    assert find("HEAD", "/health") is not None
    assert find("GET", "/v1/chat/completions") is None


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, {"add_generation_prompt": False}),
        (CHAT, {"add_generation_prompt": 0}),
        (CHAT, {"add_generation_prompt": "false"}),
        (CHAT, {"add_generation_prompt": 1}),
        (CHAT, {"continue_final_message": True}),
        (CHAT, {"continue_final_message": "yes"}),
        (CHAT, {"truncate_prompt_tokens": 5}),
        (CHAT, {"truncation_side": "left"}),
        (CHAT, {"chat_template": "{{ 1 }}"}),
        (CHAT, {"use_beam_search": True}),
        (CHAT, {"n": 1500}),
        (CHAT, {"n": "2"}),
        (CHAT, {"n": True}),
        (CHAT, {"max_tokens": "4000"}),
        (CHAT, {"temperature": float("nan")}),
        (CHAT, {"temperature": -1}),
        (CHAT, {"stop": ["x" * 60_000]}),
        (CHAT, {"stop": "x" * 60_000}),
        (CHAT, {"stop": ["x"] * 17}),
        (CHAT, {"priority": -1}),
        (CHAT, {"vllm_xargs": {"safeswitch": "off"}}),
        (CHAT, {"kv_transfer_params": {"remote": 1}}),
        (CHAT, {"structured_outputs": True}),
        (CHAT, {"a_field_of_the_next_vllm": 1}),
        (CHAT, {"return_weight_versions": True}),
        (COMPLETION, {"prompt_embeds": "x"}),
        (COMPLETION, {"prompt_logprobs": 1}),
        (COMPLETION, {"add_special_tokens": False}),
        (RESPONSES, {"background": True}),
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"previous_input_messages": []}),
        (MESSAGES, {"stop_sequences": ["x"] * 17}),
    ],
)
def test_what_is_not_served_is_refused_by_name(route: Route, body: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(body))):
        route.check(body, extra_fields=False)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, {"add_generation_prompt": True, "continue_final_message": False, "n": 2}),
        (CHAT, {"stop": None, "temperature": 0, "top_k": -1, "seed": 7, "stop_token_ids": []}),
        (CHAT, {"tools": [{}], "tool_choice": {"type": "function"}, "logit_bias": {"5": -100}}),
        (CHAT, {"metadata": {}, "store": False, "user": "me", "service_tier": "auto"}),
        (COMPLETION, {"prompt": [1, 2], "echo": True, "suffix": "", "best_of": 1}),
        (RESPONSES, {"input": "x", "store": True, "background": False, "truncation": "disabled"}),
        (MESSAGES, {"max_tokens": 5, "system": "x", "stop_sequences": ["y"]}),
    ],
)
def test_what_clients_send_every_day_is_served(route: Route, body: dict[str, Any]) -> None:
    route.check(body, extra_fields=False)


def test_a_right_opens_what_needs_one_and_nothing_else() -> None:
    CHAT.check({"priority": 1, "vllm_xargs": {"mine": 1}}, extra_fields=True)
    with pytest.raises(DataError, match="chat_template"):
        CHAT.check({"chat_template": "x"}, extra_fields=True)
