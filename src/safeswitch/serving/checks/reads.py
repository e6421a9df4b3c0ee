"""Readings handed to an engine, one context each, and their verdicts. Knows nothing of engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from safeswitch.core.types import Message
from safeswitch.engines.context import CONTEXT, Context, Verdict
from safeswitch.serving.checks.reading import Reading
from safeswitch.serving.refused import Event, Refused
from safeswitch.serving.reply import unrecorded
from safeswitch.serving.transformers.errors import ApiError

Screen = Callable[[Sequence[Message]], Awaitable[None]]
"""Has the engine read a conversation; the verdict goes into the context's decisions."""
T = TypeVar("T")


async def read_all(
    screen: Screen, readings: Sequence[Reading], context: Context, data_bundle: str | None
) -> list[Verdict]:
    """The verdict on each of n readings, which go to the engine together.

    Args:
        screen: The engine.
        readings: What is read.
        context: Of the request in hand; told of each verdict, by the reading's number.
        data_bundle: Bundle that reads what came as data; None for the default.

    Raises:
        Refused: one cannot be read (naming its field), or its verdict cannot be kept.
    """
    work = []
    for number, reading in enumerate(readings):
        bundle = data_bundle if reading.data else context.bundle
        work.append(_read_one(screen, number, reading, context, bundle))
    # all of them are waited for, so that no verdict is lost where another one fails
    found = await asyncio.gather(*work, return_exceptions=True)
    verdicts = []
    for one in found:
        if isinstance(one, BaseException):
            raise unrecorded() if context.unrecorded else one
        verdicts.append(one)
    return verdicts


async def _read_one(
    screen: Screen, number: int, reading: Reading, context: Context, bundle: str | None
) -> Verdict:
    async def decided(verdict: Verdict) -> None:
        if context.on_decision is not None:
            await context.on_decision(replace(verdict, choice=number))

    own = Context(bundle=bundle, score_only=True, on_decision=decided)
    token = CONTEXT.set(own)
    try:
        await screen(reading.messages)
    except Refused as refused:
        if refused.status != 400:
            raise
        raise ApiError(400, f"{reading.where}: {refused}", param=reading.where) from refused
    finally:
        CONTEXT.reset(token)
    return next(iter(own.decisions.values()))


async def until_left(work: asyncio.Future[T], receive: Callable[[], Awaitable[Event]]) -> T:
    """What ``work`` returns; it is cancelled where the client leaves before.

    Args:
        work: Running already.
        receive: ASGI's, once the body has been taken.

    Raises:
        ApiError: 499, the client has left.
    """
    left = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client has left")
        return work.result()
    finally:
        left.cancel()
        work.cancel()


async def _left(receive: Callable[[], Awaitable[Event]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
