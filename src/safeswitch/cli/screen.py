"""What commands show on standard error: lines, and bars where it is a terminal. Knows nothing of what is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

console = Console(stderr=True)


def say(text: str) -> None:
    """A line, as it stands."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """One bar; the function advances it."""
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
                tasks[method, benchmark] = progress.add_task(f"{method} on {benchmark}", total=None)
            progress.advance(tasks[method, benchmark], done)

        yield advance


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)
