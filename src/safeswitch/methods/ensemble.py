"""``ensemble``: many small probers on random layers and subspaces decide, the refusal head acts.

Meant against adaptive attacks (obfuscated activations, arXiv 2412.09565), to which one known
direction falls. See :mod:`safeswitch.probers.ensemble` for formula and shapes. Weakness: on the
embedded model a search by gradient evades it as surely as an average of three probers, redrawn
members included (``benchmarks/ensemble.py``). Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safeswitch.core.types import PROMPT_END, ReadPoint
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.directions import inner_layers
from safeswitch.methods.fitting import calibrated, fitted_switch, labels, prompt_activations
from safeswitch.probers.ensemble import EnsembleProber
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate


@METHODS.add("ensemble")
@dataclass(frozen=True)
class Ensemble(Method):
    """A gate of random readers.

    Args:
        members: How many.
        size: Dimensions of each subspace.
    """

    members: int = 24
    size: int = 32
    name: ClassVar[str] = "ensemble"
    tags: ClassVar[Tags] = Tags(engines=("transformers", "vllm"), trains=True, conditional=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """The ensemble at the prompt's end, with a threshold for the budget."""
        lm = engine.lm
        points = [
            ReadPoint(layer, PROMPT_END) for layer in (*inner_layers(lm, 0.25, 1.0), lm.num_layers)
        ]
        prober = EnsembleProber(points, self.members, min(self.size, lm.hidden_size))
        prober.fit(
            prompt_activations(lm, data["train"], prober),
            labels(data["train"]),
            seed=self.settings.seed,
        )
        return calibrated(engine, prober, data, self.settings)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The fitted head."""
        return fitted_switch(engine, data, self.settings, self.complied).actuator
