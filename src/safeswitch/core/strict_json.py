"""JSON from outside, read strictly. Knows nothing of what it means.

Python's own reader takes some things in silence (``NaN``, a key that stands twice, numbers beyond
a float) and fails on others in ways of its own (nesting, numbers of thousands of digits). Here each
of them is the same error, in words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject

DEEPEST = 64
"""Lists and objects inside one another; also what recursive readers of the value may rely on."""
MOST_DIGITS = 300
"""Of a whole number: more do not fit into a float either."""


def parse_json(text: str) -> Any:
    """The value that ``text`` holds, nested at most ``DEEPEST`` deep.

    Raises:
        DataError: no JSON, a key twice in one object, deeper nesting, a number that is not finite
            or has more than ``MOST_DIGITS`` digits.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_fraction,
            parse_constant=_constant,
        )
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error}") from error
    except RecursionError as error:
        raise DataError(_too_deep()) from error
    _check_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found: JsonObject = {}
    for key, value in pairs:
        if key in found:
            raise DataError(f"the key {key!r} stands twice in one object; each may stand once")
        found[key] = value
    return found


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise DataError(
            f"a number of {len(text)} digits; at most {MOST_DIGITS} are read, longer ones as text "
            "in quotes"
        )
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DataError(f"the number {text:.40} is too large; numbers must be finite")
    return value


def _constant(text: str) -> float:
    raise DataError(f"{text} is no JSON; numbers must be finite")


def _check_depth(value: object) -> None:
    """Level by level, not by recursion: the value may be nested nearly as deep as Python's stack
    allows."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        if not inner:
            return
        level = inner
    raise DataError(_too_deep())


def _too_deep() -> str:
    return f"lists and objects are nested more than {DEEPEST} deep"
