"""Requests to a vLLM engine of :mod:`tests.engines.vllm_made`, and what the transformers engine
says to them."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from safeswitch.core.types import Reply
from safeswitch.engines.context import CONTEXT, Context
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import NEW, SUPPRESS, reference, switch
from tests.switch.made import requests

ROWS = requests(80)
_NUMBERS = itertools.count()


def unwatched() -> Switch:
    """The first two stages of llama's switch, without a watch."""
    full = switch("llama")
    return replace(full, gate=replace(full.gate, watch=None, watch_until=None))


def expected(name: str, made: Switch | None = None, **options: Any) -> list[Reply]:
    """What the transformers engine replies to ``ROWS``."""
    if made is None and not options:
        return _expected(name)
    options = {"max_new_tokens": NEW, "do_sample": False, **SUPPRESS, **options}
    return reference(name).generate(ROWS, made or switch(name), **options)


@cache
def _expected(name: str) -> list[Reply]:
    return expected(name, switch(name))


def facts(reply: Reply) -> tuple[Any, ...]:
    d = reply.decision
    return (
        reply.token_ids,
        reply.text,
        reply.finish_reason,
        d.fired,
        d.stage,
        d.token_index,
        d.actuator,
        reply.prompt_tokens,
    )


def assert_same(got: list[Reply], want: list[Reply]) -> None:
    for one, other in zip(got, want, strict=True):
        assert facts(one) == facts(other)
        assert one.decision.scores == pytest.approx(other.decision.scores, abs=1e-4)
        assert one.decision.thresholds == other.decision.thresholds


async def collect(
    engine: Any, rows: list[list[int]], params: Any, **context: Any
) -> list[list[Any]]:
    """Every output of requests sent together, each in a context of its own."""
    from vllm.inputs import tokens_input

    async def one(row: list[int]) -> list[Any]:
        CONTEXT.set(Context(**context))
        outputs = engine.llm.generate(tokens_input(row), params, f"test-{next(_NUMBERS)}")
        return [out async for out in outputs]

    return await asyncio.gather(*(asyncio.create_task(one(row)) for row in rows))


def sent(
    engine: Any, params: Any, policy: str | None = None, count: int = 80, **context: Any
) -> list[list[Any]]:
    """Every output of the first ``count`` of ``ROWS``, sent together."""
    rows = reference("llama").lm.encode(ROWS[:count])
    work = collect(engine, rows, params, policy=policy, **context)
    result: list[list[Any]] = engine._wait(work)
    return result


def sampling(kind: str = "DELTA", **options: Any) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        **{"max_tokens": NEW, "temperature": 0.0, "output_kind": RequestOutputKind[kind], **options}
    )


def be_late(engine: Any, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the front end up at every output, so that the workers get ahead of it."""
    process = engine.llm.output_processor.process_outputs
    held_up = lambda *a, **k: (time.sleep(seconds), process(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(engine.llm.output_processor, "process_outputs", held_up)
