"""Who is run with whom, in which order, and what becomes of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from safeswitch.core.errors import SettingError
from safeswitch.serving.transformers.batcher import Batcher, BatchSettings, Closed, Full, Job, Left


class Waiting:
    def __init__(self, name: str) -> None:
        self.name, self.left = name, False
        self.error: BaseException | None = None
        self.fresh = True

    def gone(self) -> bool:
        return self.left

    def failed(self, error: BaseException) -> None:
        self.error = error

    def renew(self) -> bool:
        return self.fresh


class Runs:
    """Keeps the batches; the first waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, jobs: Sequence[Job[Waiting]]) -> None:
        self.batches.append([job.waiter.name for job in jobs])
        self.started.set()
        assert self.go.wait(10)
        if any(job.waiter.name == "bad" for job in jobs):
            raise RuntimeError("inside")


Make = Callable[..., tuple[Batcher[Waiting], Runs]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[tuple[Batcher[Waiting], Runs]] = []

    def build(**settings: float) -> tuple[Batcher[Waiting], Runs]:
        runs = Runs()
        made.append((Batcher(runs, BatchSettings(**settings)), runs))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for batcher, runs in made:
        runs.go.set()
        batcher.close()


def job(name: str, group: str = "g") -> Job[Waiting]:
    return Job(group, Waiting(name))


def until(told: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not told():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_oldest_decides_whose_turn_it_is_and_takes_its_like_with_it(make: Make) -> None:
    batcher, runs = make(batch_size=3, max_wait_ms=0)
    batcher.submit([job("first")])
    assert runs.started.wait(10)
    batcher.submit(
        [
            job("a1", "a"),
            job("b1", "b"),
            job("a2", "a"),
            job("b2", "b"),
            job("a3", "a"),
            job("a4", "a"),
        ]
    )
    runs.go.set()
    until(lambda: len(runs.batches) == 4)
    assert runs.batches == [["first"], ["a1", "a2", "a3"], ["b1", "b2"], ["a4"]]


def test_the_first_waits_for_company_but_not_for_long(make: Make) -> None:
    batcher, runs = make(batch_size=3, max_wait_ms=300)
    runs.go.set()
    start = time.monotonic()
    batcher.submit([job("one")])
    batcher.submit([job("two")])
    until(lambda: bool(runs.batches))
    assert runs.batches == [["one", "two"]]
    assert 0.25 < time.monotonic() - start < 3
    start = time.monotonic()
    batcher.submit([job("x"), job("y"), job("z")])
    until(lambda: len(runs.batches) == 2)
    assert time.monotonic() - start < 0.25, "a full batch has nobody to wait for"


def test_all_of_a_request_is_queued_or_nothing(make: Make) -> None:
    batcher, runs = make(queue=2, max_wait_ms=0)
    batcher.submit([job("running")])
    assert runs.started.wait(10)
    batcher.submit([job("a")])
    with pytest.raises(Full):
        batcher.submit([job("b"), job("c")])
    batcher.submit([job("d")])
    runs.go.set()
    until(lambda: len(runs.batches) == 2)
    assert runs.batches[1] == ["a", "d"]


def test_who_has_left_is_not_run_and_is_told(make: Make) -> None:
    batcher, runs = make(max_wait_ms=0)
    batcher.submit([job("running")])
    assert runs.started.wait(10)
    away, here = job("away"), job("here")
    batcher.submit([away, here])
    away.waiter.left = True
    runs.go.set()
    until(lambda: len(runs.batches) == 2)
    assert runs.batches[1] == ["here"]
    assert isinstance(away.waiter.error, Left)


def test_a_failure_reaches_the_one_that_makes_it_and_all_others_are_run(make: Make) -> None:
    batcher, runs = make(max_wait_ms=100)
    runs.go.set()
    jobs = [job(name) for name in ("a", "b", "bad", "c", "d")]
    batcher.submit([*jobs, job("later", "other")])
    until(lambda: ["later"] in runs.batches)
    assert [job.waiter.name for job in jobs if job.waiter.error is not None] == ["bad"]
    assert runs.batches == [
        ["a", "b", "bad", "c", "d"],
        ["a", "b", "bad"],
        ["a", "b"],
        ["bad"],
        ["c", "d"],
        ["later"],
    ]
    assert batcher.alive


def test_a_job_that_cannot_begin_anew_hears_of_the_failure_of_its_batch(make: Make) -> None:
    batcher, runs = make(max_wait_ms=100)
    runs.go.set()
    shown, bad, good = job("shown"), job("bad"), job("good")
    shown.waiter.fresh = False
    batcher.submit([shown, bad, good])
    until(lambda: len(runs.batches) == 3)
    until(lambda: bad.waiter.error is not None)
    assert isinstance(shown.waiter.error, RuntimeError)
    assert good.waiter.error is None
    assert runs.batches == [["shown", "bad", "good"], ["bad"], ["good"]]


def test_closing_fails_what_waits_and_lets_the_running_batch_end(make: Make) -> None:
    batcher, runs = make(max_wait_ms=0)
    running, waiting = job("running"), job("waiting")
    batcher.submit([running])
    assert runs.started.wait(10)
    batcher.submit([waiting])
    threading.Timer(0.1, runs.go.set).start()
    batcher.close()
    assert isinstance(waiting.waiter.error, Closed)
    assert running.waiter.error is None
    assert not batcher.alive
    with pytest.raises(Closed):
        batcher.submit([job("late")])


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"queue": 0}, {"max_wait_ms": -1.0}, {"max_wait_ms": float("nan")}]
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        BatchSettings(**wrong)  # type: ignore[arg-type]
