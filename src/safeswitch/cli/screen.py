"""What commands show, on standard output and standard error. Knows nothing of what is done.

Everything that a command prints goes through here, so that text of models, files and bundles cannot
steer a terminal (:mod:`safeswitch.core.shown`), and none fails for want of UTF-8. Files and pipes
get the true text.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from safeswitch.core.shown import holds_any_text, shown_on

console = Console(stderr=True)
_MINUTE = 60.0
_RATE_S = 600.0
"""Seconds over which a rate is taken; batches may take a minute each."""


def take_any_text() -> None:
    """Let both outputs take any text: what their encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put(text: object, *, end: str = "\n") -> None:
    """A text on standard output, at once."""
    print(shown_on(sys.stdout, str(text)), end=end, flush=True)


def put_json(value: object, *, indent: int | None = None) -> None:
    """A value on standard output as JSON, which stays JSON whatever the encoding."""
    put(json.dumps(value, indent=indent, ensure_ascii=not holds_any_text(sys.stdout)))


def put_markdown(text: str) -> None:
    """A page on standard output, set; links are written out, not made."""
    Console().print(Markdown(shown_on(sys.stdout, text), hyperlinks=False))


def say(text: str, style: str = "") -> None:
    """A line on standard error, as it stands."""
    console.print(Text(shown_on(sys.stderr, text), style=style), soft_wrap=True)


def complain(text: str) -> None:
    """What has ended a command, on standard error."""
    line = Text("error: ", style="bold red")
    line.append(shown_on(sys.stderr, text), style="default not bold")
    console.print(line, soft_wrap=True)


@contextmanager
def bar(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """One bar on standard error, advanced by the function; one line a minute if no terminal."""
    if not console.is_terminal:
        yield _Minutes(total, text).advance
        return
    with _progress() as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)


@contextmanager
def bars() -> Iterator[Callable[[str, str, int], None]]:
    """One bar a method and benchmark; the function advances one of them."""
    with _progress() as progress:
        tasks: dict[tuple[str, str], TaskID] = {}

        def advance(method: str, benchmark: str, done: int) -> None:
            if (method, benchmark) not in tasks:
                about = shown_on(sys.stderr, f"{method} on {benchmark}")
                tasks[method, benchmark] = progress.add_task(about, total=None)
            progress.advance(tasks[method, benchmark], done)

        yield advance


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=_RATE_S,
    )


class _RateColumn(ProgressColumn):
    """Parts a second or a minute."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else "", style="progress.data.speed")


class _Minutes:
    """Tells how far a step is, in a line a minute, when a part is done."""

    def __init__(self, total: int, text: str) -> None:
        self.total, self.text, self.done = total, text, 0
        self.start = self.last_said = time.monotonic()

    def advance(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.last_said < _MINUTE or not self.done:
            return
        self.last_said = now
        speed = self.done / (now - self.start)
        left = max(0, self.total - self.done) / speed
        say(f"{self.text}: {self.done} of {self.total}, {_rate(speed)}, about {_span(left)} left")


def _rate(a_second: float) -> str:
    return f"{a_second:.1f}/s" if a_second >= 1 else f"{60 * a_second:.1f}/min"


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
