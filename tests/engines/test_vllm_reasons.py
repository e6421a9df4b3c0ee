"""A refusal in vLLM is followed by its reason; nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.core.types import Decision
from safeswitch.data.reasons import GAP, reason
from safeswitch.engines.settings import GuardSettings
from tests.engines.vllm_made import needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("ignore")]
STOP = 7


def output(text: str, tokens: list[int], finished: bool) -> Any:
    """What vLLM gives of a run, as far as it is looked at."""
    one = SimpleNamespace(text=text, token_ids=tokens, stop_reason=None, index=0)
    return SimpleNamespace(outputs=[one], finished=finished, prompt_token_ids=[1, 2])


def said(decision: Decision, explain: str) -> str:
    """The text that a client is streamed, where the worker rolls back what the gate refuses."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    from safeswitch.engines.vllm.choice import BundlePlan, GuardedChoice, Runs
    from safeswitch.engines.vllm.settings import Task

    settings = GuardSettings({"default": "folder"}, explain=explain)
    params = SamplingParams(output_kind=RequestOutputKind.DELTA)

    async def submit(prompt: Any, sampling: SamplingParams) -> AsyncGenerator[Any, None]:
        mode = sampling.extra_args["safeswitch"]["mode"]
        if mode != "refuse" and decision.refuses:
            yield output("", [STOP], True)
            return
        word = "No." if mode == "refuse" else "Sure."
        yield output(word, [3], False)
        yield output(" Sorry." if mode == "refuse" else " Here.", [4], True)

    async def conclude(ended: int | None) -> Decision:
        return decision

    async def all_of_it() -> str:
        plan = BundlePlan("id", 0, False, True, True, False)
        runs, task = Runs(params, params, ()), Task("r", "default", "enforce")
        choice = GuardedChoice(
            submit, {}, runs, task, plan, STOP, conclude, None,
            lambda decision: settings.explanation(decision, "hello"),
        )  # fmt: skip
        return "".join([out.outputs[0].text async for out in choice.outputs()])

    return asyncio.run(all_of_it())


FIRED = Decision(
    True, "stage1", {"stage1": 0.9}, {}, actuator="low_rank_head", category="cyber", severity="refuse"
)  # fmt: skip


def test_a_refusal_is_followed_by_its_reason_where_that_is_wanted() -> None:
    assert said(FIRED, "sentence") == "No. Sorry." + GAP + reason("cyber")
    assert said(FIRED, "off") == "No. Sorry."


def test_what_is_not_refused_is_followed_by_nothing() -> None:
    cleared = Decision(False, "stage1", {"stage1": 0.1}, {})
    logged = Decision(True, "stage1", {"stage1": 0.9}, {}, category="cyber", act="log")
    assert [said(decision, "sentence") for decision in (cleared, logged)] == ["Sure. Here."] * 2
