"""Text that others wrote, made safe for a terminal: control characters are shown, not sent.

A terminal obeys what it is sent: text of a model, a file or a bundle could clear the screen,
rewrite what stands there, or turn the writing direction. Knows nothing of what the text is.
"""

from __future__ import annotations

import unicodedata
from typing import TextIO

_ALLOWED = "\n\t\u200c\u200d"
"""Beside what can be printed and spaces: lines, tabs, and the joiners that scripts and emoji
need."""


def shown(text: str) -> str:
    """``text`` with everything that is neither printed nor a space as an escape, as in
    ``\\u001b``."""
    if text.isprintable():
        return text
    return "".join(one if _harmless(one) else _escaped(one) for one in text)


def shown_on(stream: TextIO, text: str) -> str:
    """``text`` as it goes to ``stream``: :func:`shown` on a terminal, as it stands in files and
    pipes."""
    return shown(text) if stream.isatty() else text


def holds_any_text(stream: TextIO) -> bool:
    """Whether the stream's encoding has every character."""
    return (stream.encoding or "").lower().replace("-", "").replace("_", "") in (
        "utf8",
        "utf16",
        "utf32",
    )


def _harmless(one: str) -> bool:
    return one.isprintable() or one in _ALLOWED or unicodedata.category(one) == "Zs"


def _escaped(one: str) -> str:
    code = ord(one)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
