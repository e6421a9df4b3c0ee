"""Refusals go to the client beside vLLM's replies: no parser of tool calls, reasoning or JSON ever
reads one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from vllm.outputs import RequestOutput

from safeswitch.engines.context import Context, Refusal


async def separate_refusals(
    run: AsyncGenerator[RequestOutput, None],
    context: Context,
    choice: int,
    settled: Callable[[int], bool],
) -> AsyncGenerator[RequestOutput, None]:
    """One choice's outputs, with those of a refusal emptied: what they held goes into
    ``context.refusals``.

    A structured reply leaves only once it is certain that it is not refused, since half a tool call
    or half an object cannot be rolled back.

    Args:
        run: The guarded outputs of one choice, each marked with whether it is part of a refusal.
        context: Of the request in hand.
        choice: Number of the choice.
        settled: Whether a reply of so many tokens is never refused any more.
    """
    held: list[RequestOutput] = []
    count = 0
    async with aclosing(run) as outputs:
        async for out in outputs:
            refusing: bool | None = getattr(
                out, "refusing", None
            )  # None: the request is not guarded
            if refusing:
                held = []
                _take(out, context.refusals.setdefault(choice, Refusal()), count > 0)
                yield out
                continue
            held.append(out)
            count += len(out.outputs[0].token_ids)
            if context.structured and refusing is not None and not (out.finished or settled(count)):
                continue
            for one in held:
                yield one
            held = []


def _take(out: RequestOutput, refusal: Refusal, begun: bool) -> None:
    """Move what an output holds of a refusal into ``refusal``; behind a reply that had ``begun``,
    without the gap between."""
    written = out.outputs[0]
    text = written.text
    if begun and not refusal.tokens:
        text = text.removeprefix("\n\n")
    refusal.text += text
    refusal.tokens += len(written.token_ids)
    refusal.ended = out.finished
    written.text, written.token_ids = "", []
    written.logprobs = None if written.logprobs is None else []
