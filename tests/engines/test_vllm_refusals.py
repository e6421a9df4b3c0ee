"""Refusals are taken out of what vLLM's parsers read; structured replies wait until they are
certain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.engines.context import Context, Refusal
from tests.engines.vllm_made import needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("ignore")]
Piece = tuple[str, bool | None]
"""Text of an output, and whether it is marked as part of a refusal (None: not marked)."""


async def outputs(pieces: list[Piece], closed: list[bool]) -> AsyncGenerator[Any, None]:
    try:
        for i, (text, refusing) in enumerate(pieces):
            ids = list(range(len(text)))
            written = SimpleNamespace(text=text, token_ids=ids, logprobs=[{} for _ in ids])
            mark = {} if refusing is None else {"refusing": refusing}
            yield SimpleNamespace(outputs=[written], finished=i + 1 == len(pieces), **mark)
    finally:
        closed.append(True)


def run(
    pieces: list[Piece], context: Context, settled: Callable[[int], bool]
) -> list[tuple[int, str, int, int]]:
    """What comes out: before it which pieces were read, its text, its tokens, its
    log-probabilities."""
    from safeswitch.engines.vllm.choice import separate_refusals

    async def read() -> list[tuple[int, str, int, int]]:
        closed: list[bool] = []
        seen: list[tuple[int, str, int, int]] = []
        count = 0

        async def counted() -> AsyncGenerator[Any, None]:
            nonlocal count
            async for out in outputs(pieces, closed):
                count += 1
                yield out

        async for out in separate_refusals(counted(), context, 3, settled):
            written = out.outputs[0]
            seen.append((count, written.text, len(written.token_ids), len(written.logprobs)))
        assert closed == [True]
        return seen

    return asyncio.run(read())


NEVER, ALWAYS = (lambda count: False), (lambda count: True)


def test_what_a_refusal_holds_goes_to_the_context_alone() -> None:
    context = Context(separate_refusals=True, structured=True)
    assert run([("I can't", True), (" help.", True)], context, NEVER) == [
        (1, "", 0, 0),
        (2, "", 0, 0),
    ]
    assert context.refusals == {3: Refusal("I can't help.", 13, True)}


def test_a_refusal_that_is_being_written_is_not_whole() -> None:
    context = Context(separate_refusals=True)

    async def first() -> None:
        from safeswitch.engines.vllm.choice import separate_refusals

        run = separate_refusals(
            outputs([("I can't", True), (" help.", True)], []), context, 0, NEVER
        )
        await anext(run)
        await run.aclose()

    asyncio.run(first())
    assert context.refusals == {0: Refusal("I can't", 7, False)}


def test_a_structured_reply_waits_until_it_is_certain() -> None:
    context = Context(separate_refusals=True, structured=True)
    pieces: list[Piece] = [("ab", False), ("cd", False), ("ef", False), ("g", False)]
    at = [before for before, *_ in run(pieces, context, lambda count: count > 4)]
    assert at == [3, 3, 3, 4]
    assert [before for before, *_ in run(pieces, context, NEVER)] == [4, 4, 4, 4]
    assert [text for _, text, *_ in run(pieces, context, NEVER)] == ["ab", "cd", "ef", "g"]
    assert not context.refusals


def test_of_a_structured_reply_that_is_refused_late_nothing_is_shown() -> None:
    context = Context(separate_refusals=True, structured=True)
    late: list[Piece] = [("ab", False), ("cd", False), ("\n\nI can't", True), (" help.", True)]
    assert run(late, context, NEVER) == [(3, "", 0, 0), (4, "", 0, 0)]
    assert context.refusals[3].text == "I can't help."


def test_other_replies_and_unguarded_ones_do_not_wait() -> None:
    late: list[Piece] = [("ab", False), ("cd", False), ("\n\nI can't", True), (" help.", True)]
    context = Context(separate_refusals=True)
    assert [(at, text) for at, text, *_ in run(late, context, NEVER)] == [
        (1, "ab"),
        (2, "cd"),
        (3, ""),
        (4, ""),
    ]
    assert context.refusals[3].text == "I can't help."
    unguarded: list[Piece] = [("ab", None), ("cd", None)]
    structured = Context(separate_refusals=True, structured=True)
    assert [at for at, *_ in run(unguarded, structured, NEVER)] == [1, 2]
    assert [at for at, *_ in run([("ab", False), ("cd", False)], structured, ALWAYS)] == [1, 2]


@pytest.mark.parametrize(
    ("every", "until", "settled"), [(None, None, 1), (2, 8, 9), (2, None, None)]
)
def test_a_plan_knows_from_which_token_on_nothing_is_refused(
    every: int | None, until: int | None, settled: int | None
) -> None:
    from safeswitch.engines.vllm.choice import BundlePlan

    plan = BundlePlan("x", 3, True, True, True, False, every, until)
    assert next((n for n in range(1, 50) if plan.settled(n)), None) == settled
