"""Fields of settings that go by another name now. Knows nothing of what they set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")
_OLD_NAMES = "_old_names"


def renamed(old: str, new: str) -> Callable[[type[T]], type[T]]:
    """A class decorator: a field keeps working under its old name, with a
    :class:`DeprecationWarning`."""

    def warn(owner: str) -> None:
        message = f"{owner}.{old} is called {new} now"
        warnings.warn(message, DeprecationWarning, stacklevel=3)

    def decorate(cls: type[T]) -> type[T]:
        make: Any = cls.__init__

        @wraps(make)
        def __init__(self: T, *args: Any, **given: Any) -> None:
            if old in given:
                warn(cls.__name__)
                # dataclasses.replace fills the new name in, so the old one has the last word
                given[new] = given.pop(old)
            make(self, *args, **given)

        def read(self: T) -> object:
            warn(cls.__name__)
            return getattr(self, new)

        cls.__init__ = __init__  # type: ignore[method-assign, assignment]
        setattr(cls, old, property(read))
        setattr(cls, _OLD_NAMES, {**old_names(cls), new: old})
        return cls

    return decorate


def old_names(cls: type[object]) -> Mapping[str, str]:
    """The first name of each field of a class that has been renamed, by its name of today."""
    found: Mapping[str, str] = getattr(cls, _OLD_NAMES, {})
    return found
