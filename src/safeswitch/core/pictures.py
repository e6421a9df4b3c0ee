"""Images in a conversation's turns, by file or already loaded. Knows nothing of how an image is
read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from safeswitch.core.errors import DataError


@dataclass(frozen=True, eq=False)
class Picture:
    """One image, where it stands in a turn.

    Args:
        source: Path of a file, or an image of Pillow.
        at: Characters of the turn's text in front of it.
    """

    source: Any
    at: int = 0

    @cached_property
    def key(self) -> str:
        """What tells images apart: the path, or the SHA-256 (first 16 hex digits) of size, mode and
        pixels."""
        if isinstance(self.source, str):
            return self.source
        about = f"{self.source.size}{self.source.mode}".encode()
        return hashlib.sha256(about + self.source.tobytes()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and (self.key, self.at) == (other.key, other.at)

    def __hash__(self) -> int:
        return hash((self.key, self.at))

    def to_part(self) -> dict[str, str]:
        """As plain JSON: by path; an image that came loaded can be told from others by this, and
        not be read back."""
        return {"type": "image", "path" if isinstance(self.source, str) else "sha256": self.key}


def read_parts(parts: Sequence[Any]) -> tuple[str, tuple[Picture, ...]]:
    """Text and images of a turn whose content is a list of parts.

    ``{"type": "text", "text": ...}`` and ``{"type": "image", "path": file}`` or ``{"type": "image",
    "image": ...}`` with a file or an image of Pillow; texts that follow one another are joined as
    they are.

    Raises:
        DataError: a part of another kind, or without its value.
    """
    text, images = "", []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text += part["text"]
            continue
        source = (part.get("path") or part.get("image")) if kind == "image" else None
        if isinstance(source, str) or (hasattr(source, "tobytes") and hasattr(source, "mode")):
            images.append(Picture(source, len(text)))
            continue
        raise DataError(
            f"part {i} of a turn must be {{'type': 'text', 'text': ...}} or {{'type': 'image', "
            f"'path': ...}} (or 'image' with a file or a Pillow image); got {part!r:.80}"
        )
    return text, tuple(images)
