"""Parts of a run's requests, so that several processes, each with a GPU of its own, share the work.

Which request belongs to which part is told by its id alone: nothing is generated twice, and
nobody has to ask anybody. Each part is a run folder inside the whole run's; the whole run, made
last, takes the replies over and generates what a part that was killed has left.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safeswitch.bench.benchmark import Loaded
from safeswitch.bench.log import SHARDS
from safeswitch.core.errors import SettingError


@dataclass(frozen=True)
class Shard:
    """One of several parts.

    Args:
        number: Which, from 1.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The part that is written like this.

        Examples:
            >>> Shard.parse("2/8")
            Shard(number=2, count=8)

        Raises:
            SettingError: another form, or a part that there is not.
        """
        found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise SettingError(f"shard must be i/n with i in 1..n, as 2/8; got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def folder(self, run: Path) -> Path:
        """Its own run folder inside that of the whole run."""
        return run / SHARDS / f"{self.number}-of-{self.count}"

    def holds(self, request: str) -> bool:
        """Whether the request of that id belongs to it."""
        return zlib.crc32(request.encode()) % self.count == self.number - 1

    def part(self, loaded: Sequence[Loaded]) -> list[Loaded]:
        """Its requests; benchmarks without any are left out."""
        found = []
        for one in loaded:
            own = tuple(example for example in one.examples if self.holds(example.id))
            if own:
                found.append(replace(one, examples=own))
        return found
