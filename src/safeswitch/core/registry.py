"""Name -> class tables, so that configuration files and command lines can name what they want.

Knows nothing of what is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from safeswitch.core.errors import SettingError

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of named things of one family.

    Args:
        family: What the members are, for messages ("prober", "method").
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self._members: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator that registers its target under ``name``; a name is taken once."""

        def register(member: T) -> T:
            if name in self._members:
                raise SettingError(f"{self.family} {name!r} is registered twice")
            self._members[name] = member
            return member

        return register

    def __getitem__(self, name: str) -> T:
        if name not in self._members:
            raise SettingError(f"unknown {self.family} {name!r}; known: {', '.join(sorted(self._members))}")
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._members))

    def __contains__(self, name: object) -> bool:
        return name in self._members
