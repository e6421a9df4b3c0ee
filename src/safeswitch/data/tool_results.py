"""How the result of a tool, or a retrieved document, is read by itself: as a user's request with one
line in front.

The line says what follows, so that a reader that was fitted on such texts is asked about nothing
else. Knows nothing of models.
"""

from __future__ import annotations

from safeswitch.core.types import Message

FRAME = "A tool has returned this text:\n\n"
"""In front of the text, wherever it is read or fitted on."""


def framed(text: str) -> Message:
    """The text of a tool as a turn of its own."""
    return Message("user", FRAME + text)
