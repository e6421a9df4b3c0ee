"""The format of a bundle on disk: its number, which numbers are read, and the steps from old to new.

Every number is a break: a library reads its own format and, by way of the steps, older ones; a newer
one is refused. What may be absent is added without a new number. A step works on what was read, so a
bundle on disk stays as it was written. Knows nothing of gates or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from safeswitch._version import __version__
from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.strict import shown

FORMAT_VERSION = 1
"""What this library writes."""


class Stored(NamedTuple):
    """What the files of a bundle hold.

    Args:
        config: ``config.json``.
        probers: Tensors of ``probers.safetensors``, by name.
        head: Tensors of ``refusal_head.safetensors``, by name.
    """

    config: JsonObject
    probers: Mapping[str, Tensor]
    head: Mapping[str, Tensor]


Step = Callable[[Stored], Stored]
"""From one format to the next; the number itself is set by :func:`migrate`."""
STEPS: dict[int, Step] = {}
"""Steps by the number that they start from. Format 1 is the first, so there is none yet."""


def check_format(config: JsonObject, where: str) -> int:
    """The format's number, where this library can read it.

    Args:
        config: As it was read.
        where: The file, for messages.

    Raises:
        ArtifactError: no number, one of a later version, or one from which no steps lead here.
    """
    number = config.get("format_version")
    oldest = min(STEPS, default=FORMAT_VERSION)
    reads = f"this library ({__version__}) reads {_span(oldest)}"
    if type(number) is int and number > FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: format version {number} is of a later version of SafeSwitch; {reads}: "
            "pip install --upgrade safeswitch, or fit the switch anew with this version"
        )
    if type(number) is not int or number < oldest:
        raise ArtifactError(f"{where}: format version {shown(number)} is not supported; {reads}")
    return number


def migrate(stored: Stored, where: str) -> Stored:
    """What was read, as the format of this library has it.

    Args:
        stored: As it was read; left as it is.
        where: The file, for messages.

    Raises:
        ArtifactError: see :func:`check_format`.
    """
    for number in range(check_format(stored.config, where), FORMAT_VERSION):
        stepped = STEPS[number](stored)
        stored = stepped._replace(config={**stepped.config, "format_version": number + 1})
    return stored


def _span(oldest: int) -> str:
    return f"{oldest} to {FORMAT_VERSION}" if oldest < FORMAT_VERSION else str(FORMAT_VERSION)
