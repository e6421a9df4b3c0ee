"""``direction``: the refusal direction is added at one layer (Arditi et al., arXiv 2406.11717,
section 3, "induce").

``r_l = mean h_l(last prompt token | unsafe) - mean h_l(last prompt token | safe)``, ``[d]``, added
with strength 1, its own length, or half of it, to the output of one block at every position. The
layer is the one, among those in the first 80 % of the depth (the paper's limit), with the lowest
cost on validation; the paper chooses by scores of its own. Weakness: always on, it shifts safe
requests too; whoever holds the weights can subtract it. Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.directions import inner_layers, mean_difference
from safeswitch.methods.fitting import best, end_states, labels
from safeswitch.switch.actuators.base import Actuator, Steering
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate


@METHODS.add("direction")
@dataclass(frozen=True)
class RefusalDirection(Method):
    """One difference of means, added.

    Args:
        most: Layers that are tried.
        strengths: Multiples of the vector's own length that are tried.
    """

    most: int = 3
    strengths: tuple[float, ...] = (0.5, 1.0)
    name: ClassVar[str] = "direction"
    tags: ClassVar[Tags] = Tags(trains=True, per_row=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The best layer's vector."""
        layers = inner_layers(engine.lm)
        layers = layers[:: max(1, -(-len(layers) // self.most))]
        vectors = mean_difference(
            end_states(engine.lm, data["train"], layers), labels(data["train"])
        )
        pairs = list(zip(layers, vectors, strict=True))
        tried = [
            Steering((layer,), vector[None], strength)
            for strength in self.strengths
            for layer, vector in pairs
        ]
        return best(engine, gate, tried, data, self.complied, self.settings)
