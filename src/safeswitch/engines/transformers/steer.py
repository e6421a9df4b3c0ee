"""Actions inside the model, as a ``with``: states are pushed, outputs grow, weights change; all is
as before afterwards.

Rows of one batch may have a strength each. Padding is pushed too, which nothing sees: it is masked,
or not there (models that cannot bear padding get rows of one length). Knows nothing of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from safeswitch.core.errors import ModelError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Actuator, Steering
from safeswitch.switch.actuators.weights import Adapter, Weights

Change = Callable[[Tensor, Tensor], Tensor]
"""What is added to an output ``[b, t, d]``, given the module's input and that output."""


@contextmanager
def acting(lm: LanguageModel, actuator: Actuator, strengths: Sequence[float]) -> Iterator[None]:
    """Put a ``body`` action in force on the rows of a batch while the block of code runs; other
    actions do nothing here.

    Args:
        lm: The model.
        actuator: What is to be done.
        strengths: One a row, in place of the actuator's own.

    Raises:
        SettingError: a layer, module or parameter that the model does not have, or tensors of
            another shape.
        ModelError: weights that cannot be written to.
    """
    with ExitStack() as stack:
        _enter(actuator, lm, strengths, stack)
        yield


@singledispatch
def _enter(
    actuator: Actuator, lm: LanguageModel, strengths: Sequence[float], stack: ExitStack
) -> None:
    """Put one action in force until ``stack`` is closed; those for which nothing is registered act
    elsewhere."""


@_enter.register
def _steer(
    actuator: Steering, lm: LanguageModel, strengths: Sequence[float], stack: ExitStack
) -> None:
    for layer, vector in zip(actuator.layers, actuator.vectors, strict=True):
        block = _block(lm, layer, vector)
        change = _each_row(_push(vector, reply_only=actuator.where == "reply"), strengths)
        stack.callback(block.register_forward_hook(_adder(change)).remove)


@_enter.register
def _adapt(
    actuator: Adapter, lm: LanguageModel, strengths: Sequence[float], stack: ExitStack
) -> None:
    modules = dict(lm.model.named_modules())
    for name, (down, up) in actuator.factors.items():
        if name not in modules:
            raise SettingError(f"Adapter: the model has no module {name!r}")
        change = _each_row(_grow(down, up), strengths)
        stack.callback(modules[name].register_forward_hook(_adder(change)).remove)


@_enter.register
def _change(
    actuator: Weights, lm: LanguageModel, strengths: Sequence[float], stack: ExitStack
) -> None:
    stack.enter_context(changed(lm, actuator))


def _block(lm: LanguageModel, layer: int, vector: Tensor) -> nn.Module:
    if not 1 <= layer <= lm.num_layers:
        raise SettingError(
            f"Steering: layer {layer} is not a block output; allowed 1..{lm.num_layers}"
        )
    if vector.shape != (lm.model.config.get_text_config().hidden_size,):
        raise SettingError(
            f"Steering: vectors have width {vector.shape[-1]}, not the model's hidden size"
        )
    return lm.parts.blocks[layer - 1]


def _push(vector: Tensor, *, reply_only: bool) -> Change:
    """``vector`` ``[d]`` at every position, or at a prompt's last and all later ones."""

    def push(given: Tensor, output: Tensor) -> Tensor:
        moved = vector.to(output.device, output.dtype).expand_as(output)
        if not reply_only or output.shape[1] == 1:
            return moved
        last = torch.zeros(output.shape[1], 1, device=output.device, dtype=output.dtype)
        last[-1] = 1
        return moved * last

    return push


def _grow(down: Tensor, up: Tensor) -> Change:
    def grow(given: Tensor, output: Tensor) -> Tensor:
        like: JsonObject = {"device": output.device, "dtype": output.dtype}
        return (given.to(**like) @ down.to(**like).T) @ up.to(**like).T

    return grow


def _each_row(change: Change, strengths: Sequence[float]) -> Change:
    """``change`` times each row's strength; where a module sees all tokens in one row (experts),
    rows must be alike."""

    def scaled(given: Tensor, output: Tensor) -> Tensor:
        rows = torch.tensor(strengths, device=output.device, dtype=output.dtype)
        if output.dim() != 3 or output.shape[0] != len(strengths):
            if len(set(strengths)) > 1:
                got = list(output.shape)
                raise SettingError(
                    "rows of one batch cannot have strengths of their own: an output has shape "
                    f"{got}"
                )
            return change(given, output) * rows[0]
        return change(given, output) * rows[:, None, None]

    return scaled


def _adder(change: Change) -> Any:
    """A forward hook that adds ``change``."""

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + change(args[0] if args else hidden, hidden)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add


@contextmanager
def changed(lm: LanguageModel, weights: Weights) -> Iterator[None]:
    """Add differences to parameters; the old values are put back bit for bit.

    Raises:
        SettingError: a parameter that the model does not have, or places outside it.
        ModelError: a parameter that is not held in floating point (a quantised or offloaded one).
    """
    own = dict(lm.model.named_parameters())
    for name, (places, _) in weights.entries().items():
        if name not in own:
            raise SettingError(f"Weights: the model has no parameter {name!r}")
        if len(places) and int(places.max()) >= own[name].numel():
            raise SettingError(
                f"Weights: {name!r} has {own[name].numel()} entries; place {int(places.max())} is "
                "outside"
            )
        if not own[name].is_floating_point() or own[name].device.type == "meta":
            raise ModelError(
                f"Weights: {name!r} is quantised or offloaded and cannot be changed in place"
            )
    with ExitStack() as stack, torch.no_grad():
        for name, (places, values) in weights.entries().items():
            flat = own[name].data.view(-1)
            where = places.to(flat.device)
            before = flat[where].clone()
            stack.callback(flat.index_copy_, 0, where, before)
            flat.index_copy_(
                0, where, before + weights.strength * values.to(flat.device, flat.dtype)
            )
        yield
