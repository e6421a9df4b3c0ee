"""Readings handed to an engine, one context each, and their decisions. Knows nothing of engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from safeswitch.core.types import Message
from safeswitch.engines.context import CONTEXT, ChoiceDecision, Context
from safeswitch.serving.checks.reading import CheckedConversation
from safeswitch.serving.errors import ApiError, Event, not_recorded

Screen = Callable[[Sequence[Message]], Awaitable[None]]
"""Has the engine read a conversation; the decision goes into the context's decisions."""
T = TypeVar("T")


async def read_all(
    screen: Screen,
    readings: Sequence[CheckedConversation],
    context: Context,
    data_bundle: str | None,
) -> list[ChoiceDecision]:
    """The decision on each of n readings, which go to the engine together.

    Args:
        screen: The engine.
        readings: What is read.
        context: Of the request in hand; told of each decision, by the reading's number.
        data_bundle: Bundle that reads what came as data; None for the default.

    Raises:
        ApiError: one cannot be read (naming its field), or its decision cannot be kept.
    """
    work = []
    for number, reading in enumerate(readings):
        bundle = data_bundle if reading.data else context.bundle
        work.append(_read_one(screen, number, reading, context, bundle))
    # all of them are waited for, so that no decision is lost where another one fails
    found = await asyncio.gather(*work, return_exceptions=True)
    decisions = []
    for one in found:
        if isinstance(one, BaseException):
            raise not_recorded() if context.unrecorded else one
        decisions.append(one)
    return decisions


async def _read_one(
    screen: Screen, number: int, reading: CheckedConversation, context: Context, bundle: str | None
) -> ChoiceDecision:
    async def record(decided: ChoiceDecision) -> None:
        if context.on_decision is not None:
            await context.on_decision(replace(decided, choice=number))

    own = Context(bundle=bundle, score_only=True, on_decision=record)
    if not reading.data:  # the policy file speaks of requests, and of the bundle that reads these
        own.rules, own.policy_id = context.rules, context.policy_id
    token = CONTEXT.set(own)
    try:
        await screen(reading.messages)
    except ApiError as error:
        if error.status != 400:
            raise
        raise ApiError(400, f"{reading.where}: {error}", param=reading.where) from error
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
