"""How a long step tells what it has done. Knows nothing of steps, nor of how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Track = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Opens a step of so many parts, by name; inside, the function is told how many parts were done
since its last call."""


@contextmanager
def untracked(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """A step that nobody looks at."""
    yield lambda done: None
