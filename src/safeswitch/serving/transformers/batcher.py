"""Dynamic batching: requests that come within a few milliseconds and may share a batch are run
together, on one thread.

Whose turn it is, the oldest request decides, so nobody waits for more than the batches of those
before. A running batch takes nobody in. A batch that fails is run again in halves, so that what is
wrong with one request ends that request alone. Knows nothing of models, switches or HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from prometheus_client import Gauge, Histogram

from safeswitch.core.errors import SettingError

WAITING = Gauge("safeswitch_waiting_choices", "Choices that wait for a batch")
MOST = Gauge("safeswitch_queue_limit", "Most choices that may wait (serve --queue)")
ROWS = Histogram(
    "safeswitch_batch_rows", "Choices run together", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
_log = logging.getLogger("safeswitch.server")


@dataclass(frozen=True)
class BatchSettings:
    """How requests are put together.

    Args:
        batch_size: Most choices run together.
        max_wait_ms: Milliseconds that the oldest request waits for company when the engine is idle.
        queue: Most choices that wait; beyond it requests are turned away.
    """

    batch_size: int = 32
    max_wait_ms: float = 5.0
    queue: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.queue < 1:
            raise SettingError("BatchSettings: batch_size and queue must be 1 or more")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise SettingError(
                f"BatchSettings: max_wait_ms must lie in [0, 10000]; got {self.max_wait_ms}"
            )


class Waiter(Protocol):
    """Whoever waits for a job."""

    def gone(self) -> bool:
        """Whether the job need not be run any more."""

    def failed(self, error: BaseException) -> None:
        """The job has ended without a result."""

    def renew(self) -> bool:
        """Get ready to be run anew after a run that failed; False where that cannot be, or need
        not."""


W = TypeVar("W", bound=Waiter)


@dataclass(frozen=True, eq=False)
class Job(Generic[W]):
    """One choice of one request. Jobs with equal ``group`` may share a batch; ``at``: seconds of
    the monotonic clock."""

    group: Hashable
    waiter: W
    at: float = field(default_factory=time.monotonic)


class Full(Exception):
    """The queue takes no more."""


class Closed(Exception):
    """The batcher has ended."""


class Left(Exception):
    """Nobody waits for this job any more."""


class Batcher(Generic[W]):
    """A bounded queue and the thread that empties it.

    Args:
        run: Runs jobs of one group, and tells their waiters.
        settings: How jobs are put together.
    """

    def __init__(self, run: Callable[[Sequence[Job[W]]], None], settings: BatchSettings) -> None:
        self._run, self._settings = run, settings
        MOST.set(settings.queue)
        self._waiting: list[Job[W]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="safeswitch-batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still taken and run."""
        return self._thread.is_alive() and not self._closed

    def submit(self, jobs: Sequence[Job[W]]) -> None:
        """Queue all of the jobs, or none.

        Raises:
            Full: there is no room for all of them.
            Closed: after :meth:`close`.
        """
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(jobs) > self._settings.queue:
                raise Full
            self._waiting += jobs
            WAITING.set(len(self._waiting))
            self._changed.notify()

    def close(self) -> None:
        """Take no more, fail what waits, and return when the running batch has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            ROWS.observe(len(batch))
            self._attempt(batch)

    def _attempt(self, batch: Sequence[Job[W]]) -> None:
        """Run a batch; where that fails, each half of those who can be run anew."""
        try:
            self._run(batch)
        except Exception as error:  # whatever it is, those who wait must hear of it
            _log.exception("a batch of %d choices failed", len(batch))
            again = [job for job in batch if len(batch) > 1 and job.waiter.renew()]
            kept = set(map(id, again))
            for job in batch:
                if id(job) not in kept:
                    job.waiter.failed(error)
            middle = (len(again) + 1) // 2
            for half in (again[:middle], again[middle:]):
                if half:
                    self._attempt(half)

    def _next(self) -> list[Job[W]]:
        """The next batch, oldest job first; empty when there will be none."""
        with self._changed:
            while True:
                self._drop([j for j in self._waiting if self._closed or j.waiter.gone()])
                if self._closed:
                    return []
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                batch = [j for j in self._waiting if j.group == first.group][
                    : self._settings.batch_size
                ]
                left = first.at + self._settings.max_wait_ms / 1000 - time.monotonic()
                if len(batch) < self._settings.batch_size and left > 0:
                    self._changed.wait(left)
                    continue
                taken = set(map(id, batch))
                self._waiting = [j for j in self._waiting if id(j) not in taken]
                WAITING.set(len(self._waiting))
                return batch

    def _drop(self, jobs: Sequence[Job[W]]) -> None:
        if not jobs:
            return
        dropped = set(map(id, jobs))
        self._waiting = [j for j in self._waiting if id(j) not in dropped]
        WAITING.set(len(self._waiting))
        for job in jobs:
            job.waiter.failed(Closed() if self._closed else Left())
