"""The text of a request's turns; that of system turns a chat template may drop without a word.

Knows nothing of templates or engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safeswitch.core.json_types import JsonMapping

ROLES = ("system", "developer")
_TEXTS = ("text", "refusal", "thinking")
"""Fields of a content part that servers render as text."""


def system_texts(payload: JsonMapping) -> tuple[str, ...]:
    """Texts of system turns in a body of any chat route, one by one; what is no text is left
    out."""
    found = [*_texts(payload.get("system")), *_texts(payload.get("instructions"))]
    for name in ("messages", "input"):
        turns = payload.get(name)
        for turn in turns if isinstance(turns, list) else []:
            if isinstance(turn, Mapping) and turn.get("role") in ROLES:
                found += _texts(turn.get("content"))
    return tuple(found)


def text_of(content: object) -> str:
    """The plain text of a turn's content, its parts one below the other."""
    return "\n".join(_texts(content))


def _texts(content: object) -> Iterator[str]:
    """A turn's text, or that of its parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, str):
                yield part
            elif isinstance(part, Mapping):
                yield from (part[name] for name in _TEXTS if isinstance(part.get(name), str))
