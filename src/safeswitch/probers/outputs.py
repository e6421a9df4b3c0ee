"""What the attention and the MLP of single blocks add, as a prober. Knows nothing of models."""

from __future__ import annotations

from safeswitch.core.types import PARTS, PROMPT_END, ReadPoint
from safeswitch.probers.added import AddedProber, Terms
from safeswitch.probers.base import PROBERS


@PROBERS.add("outputs")
class OutputsProber(AddedProber):
    """:class:`AddedProber` on what attention and MLP of several blocks add, each on its own."""

    kind = "outputs"

    @property
    def groups(self) -> tuple[Terms, ...]:
        """One output each: two for each block."""
        points = [ReadPoint(block, PROMPT_END, part) for block in self.blocks for part in PARTS]
        return tuple({point: 1.0} for point in points)
