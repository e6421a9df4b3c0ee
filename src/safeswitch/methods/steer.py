"""``steer:FILE``: a steering vector that the user has, from repeng's GGUF or safetensors.

``h_l <- h_l + strength * v_l`` in the layers that the file names, at every position (control
vectors as in repeng; representation engineering, arXiv 2310.01405). Weakness: whatever the vector
does besides, it does to every request, unless a gate stands before it: ``safeswitch+steer:FILE``.
Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from safeswitch.core.errors import SettingError
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.actuators.vectors import load_vectors
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate


@METHODS.add("steer")
@dataclass(frozen=True)
class Steer(Method):
    """Given vectors.

    Args:
        source: ``.gguf`` or ``.safetensors``.
        strength: Multiplier.
    """

    source: str = ""
    strength: float = 1.0
    name: ClassVar[str] = "steer"
    tags: ClassVar[Tags] = Tags(trains=True, difference=True, per_row=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The file's vectors.

        Raises:
            SettingError: no file, or vectors for layers that the model does not have or of another
                width.
        """
        if not self.source:
            raise SettingError("steer: needs a file of vectors; name it as steer:vectors.gguf")
        steering = load_vectors(self.source, strength=self.strength)
        width = engine.lm.model.config.get_text_config().hidden_size
        if (
            steering.vectors.shape[1] != width
            or not 1 <= min(steering.layers) <= max(steering.layers) <= engine.lm.num_layers
        ):
            raise SettingError(
                f"steer: {self.source} holds vectors {steering.vectors.shape[1]} wide for layers "
                f"{min(steering.layers)}..{max(steering.layers)}; the model is {width} wide and "
                f"has layers 1..{engine.lm.num_layers}"
            )
        return steering
