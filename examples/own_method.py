"""A method of your own in one file: a fixed reply wherever one direction of the states says unsafe.

    safeswitch compare --model nano --switch nano --suite nano --limit 10 --out build/own \
        --methods base,examples/own_method.py:FixedReply,safeswitch
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from safeswitch.core.types import ReadPoint
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import calibrated, prompt_activations
from safeswitch.probers.mean_difference import MeanDifferenceProber
from safeswitch.switch.actuators.base import Actuator, Canned
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate


@METHODS.add("fixed_reply")
@dataclass(frozen=True)
class FixedReply(Method):
    """When: the state at the prompt's end lies on the unsafe side of the two classes' mean states,
    by more than all but the budget's fraction of safe requests. What: always the same sentence.

    Args:
        text: The sentence.
    """

    text: str = "I can't help with that."
    name: ClassVar[str] = "fixed_reply"
    tags: ClassVar[Tags] = Tags(trains=True, conditional=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """One prober on the layer at three quarters of the depth, calibrated to the budget."""
        prober = MeanDifferenceProber(ReadPoint(engine.lm.num_layers * 3 // 4))
        examples = data["train"]
        labels = torch.tensor([example.unsafe for example in examples])
        prober.fit(prompt_activations(engine.lm, examples, prober), labels)
        return calibrated(engine, prober, data, self.settings)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The sentence, whatever the request."""
        return Canned(self.text)
