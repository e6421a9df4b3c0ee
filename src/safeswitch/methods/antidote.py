"""``antidote``: a sparse principal direction in several layers, one strength (Jailbreak Antidote,
arXiv 2410.02298, section 3).

For each layer, d_l is the first principal direction of the differences between paired unsafe and
safe requests' last states, ``[d]``, towards the unsafe side, where the model refuses. Layers are
ranked by how many validation pairs d_l orders, and the upper 37.5 % kept (reference code); of each
d_l the largest 5 % of entries stay, without renormalising. Then ``h_l <- h_l + alpha * (d_l *
m_l)`` at every position. alpha is the dial: it may be given with each request
(``engine.generate(prompts, switch, strength=[...])``). Its default is chosen on validation among
multiples of the mean gap between both kinds along d_l (the paper tunes it for each model).
``dense_antidote`` keeps every entry, for comparison.
Weakness: always on, it shifts safe requests too. Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safeswitch.core.deprecated import renamed
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.directions import (
    inner_layers,
    keep_largest,
    pair_accuracy,
    pair_differences,
    pair_directions,
)
from safeswitch.methods.fitting import best, end_states, labels
from safeswitch.switch.actuators.base import Actuator, Steering
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate


@METHODS.add("antidote")
@renamed("layer_share", "layer_fraction")
@renamed("entry_share", "entry_fraction")
@dataclass(frozen=True)
class Antidote(Method):
    """Masked principal directions.

    Args:
        layer_fraction: Fraction of the layers that are steered.
        entry_fraction: Fraction of each direction's entries that stays.
        multiples: Strengths that are tried, in mean gaps.
    """

    layer_fraction: float = 0.375
    entry_fraction: float = 0.05
    multiples: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    name: ClassVar[str] = "antidote"
    tags: ClassVar[Tags] = Tags(trains=True, per_row=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The directions at the best strength."""
        layers = inner_layers(engine.lm, 0.0, 1.0)
        fit, held = (
            pair_differences(end_states(engine.lm, data[part], layers), labels(data[part]))
            for part in ("train", "validation")
        )
        directions = pair_directions(fit)
        ranked = pair_accuracy(directions, held).argsort(descending=True, stable=True)
        kept = sorted(ranked[: max(1, round(self.layer_fraction * len(layers)))].tolist())
        vectors = keep_largest(directions[kept], self.entry_fraction)
        gap = float((fit[kept].mean(1) * directions[kept]).sum(1).mean())
        chosen = tuple(layers[i] for i in kept)
        tried = [Steering(chosen, vectors, multiple * gap) for multiple in self.multiples]
        return best(engine, gate, tried, data, self.complied, self.settings)


@METHODS.add("dense_antidote")
@renamed("layer_share", "layer_fraction")
@renamed("entry_share", "entry_fraction")
@dataclass(frozen=True)
class DenseAntidote(Antidote):
    """The same with every entry."""

    entry_fraction: float = 1.0
    name: ClassVar[str] = "dense_antidote"
