"""What single blocks add to the residual stream, as a prober. Knows nothing of models."""

from __future__ import annotations

from safeswitch.core.types import PROMPT_END, ReadPoint
from safeswitch.probers.added import AddedProber, Terms
from safeswitch.probers.base import PROBERS


@PROBERS.add("steps")
class StepsProber(AddedProber):
    """:class:`AddedProber` on the steps ``h[b] - h[b - 1]`` of several blocks b.

    Block b takes layer ``b - 1`` to layer b. A model's last block is none of them, since the last
    layer's state is that behind the final norm. A layer between two of the blocks is read once.
    """

    kind = "steps"

    @property
    def groups(self) -> tuple[Terms, ...]:
        """A difference of two layers for each block."""
        return tuple(
            {ReadPoint(block - 1, PROMPT_END): -1.0, ReadPoint(block, PROMPT_END): 1.0}
            for block in self.blocks
        )
