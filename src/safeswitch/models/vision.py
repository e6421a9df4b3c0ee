"""Prompts with images: through a model's processor to token rows and the tensors that go with them,
and into a batch.

Shapes: n rows, t tokens. Knows processors, and nothing of what is read or decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.pictures import Picture

if TYPE_CHECKING:
    from PIL import Image


Vision = Mapping[str, Tensor]
"""What a model is given of the images of one row, by the names of its arguments; empty for text."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One prompt as a model is given it.

    Args:
        ids: Token ids, image tokens among them.
        vision: Its images.
    """

    ids: list[int]
    vision: Vision = field(default_factory=dict)


def collate(visions: Sequence[Vision], lengths: Sequence[int], width: int) -> dict[str, Tensor]:
    """The images of n left-padded rows, as arguments of the model; empty where no row has any.

    Tensors with one entry a token are padded with zeros to ``[n, width]``, the others joined in the
    order of rows.

    Args:
        visions: Of each row; none: no row has images.
        lengths: Tokens of each row, a reply that follows the prompt among them.
        width: Tokens of the batch.
    """
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for vision in visions for name in vision):
        given = [vision.get(name) for vision in visions]
        if name.endswith("token_type_ids"):
            rows = torch.zeros(len(visions), width, dtype=torch.long)
            for i, (part, length) in enumerate(zip(given, lengths, strict=True)):
                if part is not None:
                    start = width - length
                    rows[i, start : start + part.shape[1]] = part[0]
            found[name] = rows
        else:
            found[name] = torch.cat([part for part in given if part is not None])
    return found


def open_picture(picture: Picture) -> Image.Image:
    """The image, loaded, in RGB.

    Raises:
        DataError: Pillow is not installed, or the file holds no image.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DataError(
            "prompts with images need Pillow: pip install 'safeswitch[vision]'"
        ) from error
    if not isinstance(picture.source, str):
        converted: Image.Image = picture.source.convert("RGB")
        return converted
    try:
        with Image.open(picture.source) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read an image from {picture.source!r}: {error}") from error


def turn_parts(content: str, images: Sequence[Picture]) -> list[JsonObject]:
    """A turn's text and loaded images in their order, as chat templates of processors take them."""
    parts: list[JsonObject] = []
    start = 0
    for picture in sorted(images, key=lambda p: p.at):
        if picture.at > start:
            parts.append({"type": "text", "text": content[start : picture.at]})
            start = picture.at
        parts.append({"type": "image", "image": open_picture(picture)})
    if start < len(content) or not parts:
        parts.append({"type": "text", "text": content[start:]})
    return parts
