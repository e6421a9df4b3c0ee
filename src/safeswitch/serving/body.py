"""A request's body: received and read within bounds, before anything is done with it. The same for
both engines.

What is let through is an object of plain JSON that every parser reads alike: UTF-8, no name twice,
no half of a surrogate pair, numbers that 64 bits or a 32-bit float hold. Knows nothing of engines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

from safeswitch.core.errors import DataError, check_unicode
from safeswitch.core.json_types import JsonObject
from safeswitch.serving.errors import ApiError, Event

Headers = Iterable[tuple[bytes, bytes]]

MAX_DEPTH = 64
"""Deepest nesting of lists and objects; JSON schemas in tools need a dozen."""
MAX_PARTS = 4096
"""Most lists and objects in one body: each costs far more to check than the bytes it is written
in."""
MAX_FIELDS = 1024
"""Most fields of one object."""
MAX_STOPS = 16
"""Most stop strings; OpenAI has 4, and harnesses send a few more."""
MAX_STOP_CHARACTERS = 1024
"""Most characters of all stop strings together."""
LARGEST, SMALLEST = 3.4e38, 1.2e-38
"""Size of the numbers with a fraction that a 32-bit float holds without loss of digits."""

# The possessive quantifiers and the optional end make each quote match once, whatever follows: the
# cost is linear.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_EXTREME = re.compile(r"[0-9](?:[0-9]{18}|[eE][+-]?[0-9])")
"""Where there is none of these, every number is harmless, and need not be looked at one by one."""


async def receive_body(
    receive: Callable[[], Awaitable[Event]], headers: Headers, most: int
) -> bytes:
    """The whole body.

    Args:
        receive: ASGI's.
        headers: Of the request.
        most: Largest body, in bytes.

    Raises:
        ApiError: 413, a body that is or says that it is larger; 400, one of another length than it
            says; 499, the client has left.
    """
    declared = _declared_length(headers)
    if declared is not None and declared > most:
        raise _too_large(most)
    parts, size = [], 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ApiError(499, "the client has left")
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not event.get("more_body"):
            break
    if declared is not None and declared != size:
        raise ApiError(400, f"Content-Length says {declared} bytes, but the body has {size}")
    return b"".join(parts)


def _declared_length(headers: Headers) -> int | None:
    values = _values(headers, b"content-length")
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch(r"\d{1,18}", values[0]):
        raise ApiError(400, "Content-Length takes one whole number")
    return int(values[0])


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request body is larger than {most} bytes")


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key.lower() == name]


def read_body(body: bytes, headers: Headers) -> JsonObject | None:
    """The object that a body holds; None where it is empty.

    Raises:
        ApiError: 415, a body that is not JSON by its headers; 400, one that cannot be read, with
            the reason.
    """
    if not body:
        return None
    _check_media_type(headers)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not valid UTF-8 at byte {error.start}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_nesting(_STRING.sub("", text))
    numbers: JsonObject = (
        {"parse_int": _whole, "parse_float": _fraction} if _EXTREME.search(text) else {}
    )
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, **numbers)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ApiError(400, f"the body is not valid JSON: {error.msg} at {where}") from error
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object")
    if _HALF_PAIR.search(text):
        _check_text(found)
    return found


def _check_media_type(headers: Headers) -> None:
    """A page in a browser may send other types, or none, to a server that has not allowed it to."""
    given = _values(headers, b"content-type")
    kind, _, parameters = (given[0] if len(given) == 1 else "").lower().partition(";")
    if kind.strip() != "application/json" or _plain(parameters) not in ("", "charset=utf-8"):
        raise ApiError(415, "the body must be JSON in UTF-8: Content-Type: application/json")
    if [coding for coding in _values(headers, b"content-encoding") if coding.lower() != "identity"]:
        raise ApiError(415, "the body must not be compressed")


def _plain(parameters: str) -> str:
    return parameters.replace(" ", "").replace('"', "")


def _check_nesting(bare: str) -> None:
    """Count lists and objects in a text without its strings."""
    depth = deepest = parts = 0
    for bracket in re.finditer(r"[][{}]", bare):
        opens = bracket.group() in "[{"
        depth += 1 if opens else -1
        parts += opens
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            raise ApiError(400, f"the body nests deeper than {MAX_DEPTH} lists and objects")
        if parts > MAX_PARTS:
            raise ApiError(400, f"the body has more than {MAX_PARTS} lists and objects")


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    if len(pairs) > MAX_FIELDS:
        raise ApiError(
            400, f"an object in the body has {len(pairs)} fields; at most {MAX_FIELDS} are taken"
        )
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
    raise ApiError(400, f"the field {twice[:100]!a} is given more than once")


def _no_number(text: str) -> NoReturn:
    raise ApiError(400, f"{text} is no JSON number")


def _whole(digits: str) -> int:
    if len(digits) <= 20:
        value = int(digits)
        if -(2**63) <= value < 2**64:
            return value
    raise ApiError(
        400, f"whole numbers must fit into 64 bits; got one of {len(digits.lstrip('-'))} digits"
    )


def _fraction(text: str) -> float:
    value = float(text)
    if value == 0 or SMALLEST <= abs(value) <= LARGEST:
        return value
    raise ApiError(
        400,
        f"numbers with a fraction must be 0 or between {SMALLEST} and {LARGEST} in size; got "
        f"{text[:40]}",
    )


def _check_text(found: JsonObject) -> None:
    """Refuse halves of surrogate pairs, which only escapes can bring into text that is valid
    UTF-8."""
    for name, value in found.items():
        try:
            check_unicode("the body", json.dumps({name: value}, ensure_ascii=False))
        except DataError:
            raise ApiError(
                400, f"the field {name[:100]!a} holds half of a surrogate pair, which is no text"
            ) from None


def replies_asked(payload: JsonObject) -> int:
    """Number of replies that a body asks for: ``n`` to each of its prompts.

    Raises:
        ApiError: ``n`` or ``best_of`` that is no whole number from 1 on.
    """
    each = 1
    for name in ("n", "best_of"):
        value = payload.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise ApiError(400, f"{name}: takes a whole number from 1 on", param=name)
        each = max(each, value)
    return each * max(
        _listed(payload.get("prompt"), int), _listed(payload.get("messages"), dict), 1
    )


def _listed(value: object, inner: type) -> int:
    """Entries of a list of prompts; 1 for one prompt, which may be a list of ``inner`` itself."""
    return (
        len(value) if isinstance(value, list) and value and not isinstance(value[0], inner) else 1
    )


def check_replies(count: int, most: int) -> None:
    """Refuse more replies, or texts to be read, than one request may ask for.

    Raises:
        ApiError: there are more than ``most``.
    """
    if count > most:
        raise ApiError(400, f"{count} replies are asked for; at most {most} can be", param="n")


def check_sizes(payload: JsonObject, most: int) -> None:
    """Refuse more than is served, before anything is done for it.

    Args:
        payload: The body.
        most: Most replies that one request may ask for.

    Raises:
        ApiError: too many replies, or stop strings that are too many, too long or no strings.
    """
    check_replies(replies_asked(payload), most)
    for name in ("stop", "stop_sequences"):
        _check_stops(name, payload.get(name))


def _check_stops(name: str, given: object) -> None:
    if given is None:
        return
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(
        isinstance(stop, str) for stop in stops[: MAX_STOPS + 1]
    ):
        raise ApiError(
            400, f"{name}: takes text, or a list of at most {MAX_STOPS} texts", param=name
        )
    if len(stops) > MAX_STOPS:
        raise ApiError(
            400, f"{name}: at most {MAX_STOPS} stop strings are taken; got {len(stops)}", param=name
        )
    length = sum(map(len, stops))
    if length > MAX_STOP_CHARACTERS:
        raise ApiError(
            400,
            f"{name}: stop strings may have {MAX_STOP_CHARACTERS} characters together; got "
            f"{length}",
            param=name,
        )
