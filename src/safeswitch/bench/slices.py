"""What requests are told apart by: category, language, length, position and so on, from the tags
that their benchmark gives them. Knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from safeswitch.bench.log import Logged

_LONGEST = (80, 400, 2000, 10000)
"""Characters: about 20, 100, 500 and 2,500 tokens of English."""
LENGTHS: tuple[str, ...] = (
    "to 80 characters",
    "81 to 400 characters",
    "401 to 2000 characters",
    "2001 to 10000 characters",
    "over 10000 characters",
)
POSITIONS: tuple[str, ...] = ("before", "middle", "behind")
"""Where in a long context a request stands, as ``meta.place`` of its row says."""


@dataclass(frozen=True)
class Slice:
    """One way to tell requests apart.

    Args:
        key: What a row has of it; empty where its benchmark says nothing.
        order: Values in the order of tables; others follow, sorted.
    """

    key: Callable[[Logged], str]
    order: Sequence[str] = ()

    def values(self, rows: Sequence[Logged]) -> list[str]:
        """The values that ``rows`` have, in order."""
        found = {self.key(row) for row in rows} - {""}
        known = [value for value in self.order if value in found]
        return [*known, *sorted(found.difference(known))]


def length_of(row: Logged) -> str:
    """The length of all turns together.

    In characters, since tokens differ from model to model and words are not told in all languages.
    """
    size = sum(len(message.content) for message in row.example.messages)
    return LENGTHS[sum(size > longest for longest in _LONGEST)]


SLICES: Mapping[str, Slice] = {
    "category": Slice(lambda row: row.example.category),
    "language": Slice(lambda row: row.language),
    "length": Slice(length_of, LENGTHS),
    "position": Slice(lambda row: row.example.meta.get("place", ""), POSITIONS),
    "source": Slice(lambda row: row.example.source),
    "wrapper": Slice(lambda row: row.example.wrapper),
}
"""By name, in the order of tables."""
BY: tuple[str, ...] = ("category", "language", "length", "position")
"""Those that are asked for by name."""
