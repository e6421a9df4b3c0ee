"""Calls of the front end to the engine's workers: many requests in one, and none that waits for a
dead engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


_PATIENCE = 1.0
"""Seconds after which the engine is asked whether it is still there."""


async def alive(engine: AsyncLLM, call: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """What the workers answer; a call under way when their process dies would never end in vLLM.

    Raises:
        EngineDeadError: they are gone.
    """
    running = asyncio.ensure_future(call)
    while not (await asyncio.wait({running}, timeout=_PATIENCE))[0]:
        if engine.errored:
            running.cancel()
            raise engine.dead_error
    return running.result()


async def set_thresholds(
    engine: AsyncLLM, bundle: str, thresholds: Mapping[str, float]
) -> dict[str, float]:
    """Put thresholds of a bundle in force in every worker; returns all that are in force then.

    Raises:
        SettingError: an unknown bundle or stage, or a value outside [0, 1].
    """
    call = engine.collective_rpc("safeswitch_thresholds", args=(bundle, dict(thresholds)))
    answers = await alive(engine, call)
    found: dict[str, float] = next((a for a in answers if a), {})
    if "error" in found:
        raise SettingError(str(found["error"]))
    return dict(found)


class Coalesced:
    """One worker call for all requests that ask at about the same time."""

    def __init__(self, engine: AsyncLLM, method: str) -> None:
        self._engine, self._method = engine, method
        self._waiting: dict[str, tuple[int | None, asyncio.Future[object]]] = {}
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, key: str, fed: int | None) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._waiting[key] = fed, future
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            counts = {key: fed for key, (fed, _) in batch.items()}
            try:
                answers = await alive(
                    self._engine, self._engine.collective_rpc(self._method, args=(counts,))
                )
            except Exception as error:
                for _, future in batch.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            found: JsonObject = next((a for a in answers if a), {})
            for key, (_, future) in batch.items():
                if not future.done():
                    future.set_result(found.get(key))
