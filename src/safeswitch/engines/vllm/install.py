"""The two things of vLLM that are replaced: ``AsyncLLM.generate`` and ``AsyncLLM.shutdown``
(``v1/engine/async_llm.py``).

``generate`` is what every endpoint of vLLM's server goes through. ``shutdown`` waits for what runs:
an engine that has been told to stop takes no resubmission any more.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safeswitch.core.errors import SettingError
from safeswitch.engines.settings import OFF, GuardSettings, switched_off
from safeswitch.engines.vllm.frontend import FrontEnd

if TYPE_CHECKING:
    from vllm.inputs import PromptType
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

    from safeswitch.engines.vllm.choice import Outputs


_log = logging.getLogger("safeswitch.server")


def guarded(original: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """``AsyncLLM.generate`` with the guard around it, for engines whose settings ask for it."""

    @functools.wraps(original)
    def generate(
        self: AsyncLLM,
        prompt: PromptType,
        sampling_params: SamplingParams,
        request_id: str,
        **kwargs: Any,
    ) -> Outputs:
        settings = GuardSettings.parse(self.vllm_config.additional_config)
        if switched_off() or settings is None or settings.record:
            return original(self, prompt, sampling_params, request_id, **kwargs)
        return front_of(self).generate(prompt, sampling_params, request_id, **kwargs)

    generate.safeswitch = True  # type: ignore[attr-defined]
    return generate


def front_of(engine: AsyncLLM, chat_template: str | None = None) -> FrontEnd:
    """The guarded front end of an ``AsyncLLM``, made when it is first asked for.

    Args:
        engine: The ``AsyncLLM``.
        chat_template: The server's own, where it has one; taken when the front end is made.
    """
    front: FrontEnd | None = engine.__dict__.get("safeswitch")
    if front is None:
        original = type(engine).generate.__wrapped__
        front = engine.safeswitch = FrontEnd(engine, original.__get__(engine), chat_template)
    return front


async def check_at_work(engine: AsyncLLM, chat_template: str | None = None) -> None:
    """Make sure that requests to ``engine`` are guarded, before the first one.

    Says so in the log where the operator has switched the guard off.

    Args:
        engine: The server's engine client.
        chat_template: The server's own, None for the tokenizer's.

    Raises:
        SettingError: they would not be.
    """
    if switched_off():
        _log.warning("%s=1: every request passes untouched", OFF)
        return
    config = getattr(engine, "vllm_config", None)
    if config is None or GuardSettings.parse(config.additional_config) is None:
        raise SettingError(
            "SafeSwitch's middleware is in use, but --additional-config has no 'safeswitch' entry"
        )
    try:
        await front_of(engine, chat_template).start()
    except SettingError:
        raise
    except Exception as error:  # a worker without our extension does not know the call
        raise SettingError(
            "SafeSwitch is not at work in this engine's workers; see docs/background/vllm.md for "
            "its flags"
        ) from error


class Door:
    """Lets a server's requests to one engine in until it is closed, and counts those inside."""

    def __init__(self) -> None:
        self.closed, self.inside = False, 0

    @staticmethod
    def of(engine: AsyncLLM) -> Door:
        """The door of an ``AsyncLLM``."""
        door: Door = engine.__dict__.setdefault("safeswitch_door", Door())
        return door

    def __enter__(self) -> None:
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1


def draining(original: Callable[..., None]) -> Callable[..., None]:
    """``AsyncLLM.shutdown`` once the server's requests have ended, or the engine's
    ``shutdown_timeout`` is over."""

    def shutdown(self: AsyncLLM, timeout: float | None = None) -> None:
        door, front = self.__dict__.get("safeswitch_door"), self.__dict__.get("safeswitch")
        if (
            door is not None and asyncio._get_running_loop() is None
        ):  # vLLM's server stops its engine from a thread
            door.closed, last = True, time.monotonic() + self.vllm_config.shutdown_timeout
            while (
                door.inside or (front is not None and front.concluding)
            ) and time.monotonic() < last:
                time.sleep(0.05)
        original(self, timeout)

    return shutdown


def install() -> None:
    """Put the guard around ``AsyncLLM.generate`` and ``shutdown`` of this process; a second call
    changes nothing."""
    from vllm.v1.engine.async_llm import AsyncLLM

    if not getattr(AsyncLLM.generate, "safeswitch", False):
        AsyncLLM.generate, AsyncLLM.shutdown = (
            guarded(AsyncLLM.generate),
            draining(AsyncLLM.shutdown),
        )
