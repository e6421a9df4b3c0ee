"""Hooks that read hidden states out of the forward pass that is running anyway: the one reading path of the library.

Collecting training states and gating at run time both go through :class:`Reader`, so a prober sees at run time what it
was fitted on. Shapes: b rows of the batch, t tokens, d hidden size. Knows nothing of positions, labels or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safeswitch.core.errors import ModelError, SettingError
from safeswitch.models.language_model import LanguageModel

Keep = Callable[[Tensor], Tensor]


def keep_last(hidden: Tensor) -> Tensor:
    """The state of the last token of every row: ``[b, t, d]`` to ``[b, d]``; the default of :class:`Reader`."""
    return hidden[:, -1]


class Reader:
    """Context manager that keeps chosen parts of chosen layers during every forward pass below it.

    Layer 0 is what enters the first block (the embeddings, with what the model adds to them), layer ``i`` what leaves
    block ``i``, and layer ``num_layers`` what leaves the backbone: the state after the final norm, on which the LM head
    works. The hooks are gone after the block, also after an exception and after a failure half-way in.

        with Reader(lm, [4, -1]) as reader:
            lm.model(input_ids=ids, attention_mask=mask)
            reader.states[4]  # [b, d]

    Args:
        lm: The model to read.
        layers: Layer numbers; negative ones count from the end.
        keep: What to keep of ``hidden [b, t, d]``: one function, or one a layer number (resolved). It may be replaced
            between forward passes. What it returns is copied when it shares memory with the layer's output, so that
            nothing else of that output stays alive. Default: :func:`keep_last`.

    Attributes:
        layers: The resolved layer numbers, ascending, each once.
        states: By layer number, what was kept of the latest forward pass, on the layer's own device.
    """

    def __init__(self, lm: LanguageModel, layers: Iterable[int], keep: Keep | Mapping[int, Keep] = keep_last) -> None:
        self.lm = lm
        self.layers: tuple[int, ...] = tuple(sorted({lm.layer(layer) for layer in layers}))
        self.keep = keep
        self.states: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Reader:
        if self._handles:
            raise SettingError("Reader: it is open already; use one Reader for each with block")
        try:
            for layer in self.layers:
                self._handles.append(self._install(layer))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _install(self, layer: int) -> RemovableHandle:
        parts = self.lm.parts

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self._store(layer, _hidden(output, layer))

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._store(layer, _hidden(args or kwargs.get("hidden_states"), layer))

        if layer == self.lm.num_layers:
            return parts.backbone.register_forward_hook(after)
        if layer == 0:
            return parts.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
        return parts.blocks[layer - 1].register_forward_hook(after)

    def _store(self, layer: int, hidden: Tensor) -> None:
        keep = self.keep[layer] if isinstance(self.keep, Mapping) else self.keep
        kept = keep(hidden)
        if kept.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr():
            kept = kept.clone()
        self.states[layer] = kept


def _hidden(output: Any, layer: int) -> Tensor:
    """The hidden states ``[b, t, d]`` in what a block or backbone took or gave."""
    found = getattr(output, "last_hidden_state", output)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.dim() != 3:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"layer {layer} does not hold hidden states [batch, tokens, size]; got {got}")
    return found
