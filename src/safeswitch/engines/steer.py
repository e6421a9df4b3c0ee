"""Steering inside a ``with``: vectors are added to block outputs and every hook is gone afterwards.

Knows nothing of gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from safeswitch.core.errors import SettingError
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators import Steering


@contextmanager
def steered(lm: LanguageModel, steering: Steering) -> Iterator[None]:
    """Add ``steering`` to the model's blocks at every position while the block of code runs.

    Raises:
        SettingError: a layer that is not the output of a block, or vectors of another width.
    """
    with ExitStack() as stack:
        for layer, vector in zip(steering.layers, steering.vectors, strict=True):
            if not 1 <= layer <= lm.num_layers:
                raise SettingError(f"Steering: layer {layer} is not a block output; allowed 1..{lm.num_layers}")
            push = steering.strength * vector
            if push.shape != (lm.model.config.get_text_config().hidden_size,):
                raise SettingError(f"Steering: vectors have width {vector.shape[-1]}, not the model's hidden size")
            stack.callback(lm.parts.blocks[layer - 1].register_forward_hook(_adder(push)).remove)
        yield


def _adder(push: Tensor) -> Any:
    """A hook that adds ``push``, where and in what the block's output is: its weights may be rounded or elsewhere."""

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal push
        hidden = output[0] if isinstance(output, tuple) else output
        push = push.to(hidden.device, hidden.dtype)
        return (hidden + push, *output[1:]) if isinstance(output, tuple) else hidden + push

    return add
