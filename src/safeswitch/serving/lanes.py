"""Work beside the event loop, in two lanes: short work does not wait behind long work, and neither
queues without end.

For tokenisation, whose time grows with the text. Knows nothing of tokenizers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from safeswitch.serving.errors import busy

SHORT = 16_384
"""Characters, or tokens, up to which work is short: a few milliseconds."""
T = TypeVar("T")


class Lane:
    """A bounded queue before some threads.

    Args:
        name: Of the threads.
        threads: How many.
        waiting: Most calls that run or wait; beyond it they are turned away.
    """

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"safeswitch-{name}")
        self._room = waiting

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns.

        Raises:
            ApiError: 429, too many calls wait.
        """
        if self._room < 1:
            raise busy()
        self._room -= 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, call)
        running.add_done_callback(self._free)
        return await running

    def _free(self, done: asyncio.Future[T]) -> None:
        self._room += 1

    def close(self) -> None:
        """Take no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Lanes:
    """A lane for short work and one for long work."""

    def __init__(self) -> None:
        self._short, self._long = Lane("short", 2, 512), Lane("long", 1, 8)

    async def run(self, size: int, call: Callable[[], T]) -> T:
        """What ``call`` returns.

        Args:
            size: Characters or tokens that it works on.
            call: The work.

        Raises:
            ApiError: 429, too many calls wait.
        """
        return await (self._short if size <= SHORT else self._long).run(call)

    def close(self) -> None:
        """Take no more."""
        self._short.close()
        self._long.close()
