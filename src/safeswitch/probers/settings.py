"""Allowed values of settings, stated as data, so that messages and checks are written once.

Knows nothing of probers or tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    allowed: tuple[str, ...]

    def accepts(self, value: object) -> bool:
        return value in self.allowed

    def __str__(self) -> str:
        return "one of " + ", ".join(repr(a) for a in self.allowed)


@dataclass(frozen=True)
class Number:
    """A number in ``[low, high]``.

    Args:
        low: Smallest allowed value.
        high: Largest allowed value.
        whole: Whether it must be a whole number.
        optional: Whether ``None`` is allowed (the prober then decides).
    """

    low: float
    high: float
    whole: bool = False
    optional: bool = False

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return bool(self.low <= value <= self.high)  # NaN compares False

    def __str__(self) -> str:
        noun = "a whole number" if self.whole else "a number"
        return f"{noun} in [{self.low:g}, {self.high:g}]" + (" or None" if self.optional else "")


@dataclass(frozen=True)
class WholeNumbers:
    """A list of one or more different whole numbers in ``[low, high]``."""

    low: int
    high: int

    def accepts(self, value: object) -> bool:
        if not isinstance(value, list | tuple) or not value:
            return False
        one = Number(self.low, self.high, whole=True)
        return all(one.accepts(number) for number in value) and len(set(value)) == len(value)

    def __str__(self) -> str:
        return f"a list of one or more different whole numbers in [{self.low}, {self.high}]"


Limit = Choice | Number | WholeNumbers


def setting_faults(
    owner: str, values: Mapping[str, object], limits: Mapping[str, Limit]
) -> list[str]:
    """One message for each of ``values`` that lies outside its limit; a name without a limit is a
    fault too."""
    faults = []
    for name, value in values.items():
        if name not in limits:
            faults.append(
                f"{owner}: unknown setting {name!r}; known: {', '.join(sorted(limits)) or 'none'}"
            )
        elif not limits[name].accepts(value):
            faults.append(f"{owner}: {name} must be {limits[name]}; got {value!r}")
    return faults
