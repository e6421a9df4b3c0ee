"""Hooks that read hidden states out of the forward pass that is running anyway: the one reading
path of the library.

Collecting training states and gating at run time both go through :class:`Reader`, so a prober sees
at run time what it was fitted on. Shapes: b rows of the batch, t tokens, d hidden size. Knows
nothing of positions, labels or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Output, Site
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.locate import hidden_in

Keep = Callable[[Tensor], Tensor]


def keep_last(hidden: Tensor) -> Tensor:
    """The state of the last token of every row: ``[b, t, d]`` to ``[b, d]``; the default of
    :class:`Reader`."""
    return hidden[:, -1]


class Reader:
    """Context manager that keeps chosen parts of chosen states during every forward pass below it.

    Layer 0 is what enters the first block (the embeddings, with what the model adds to them), layer
    ``i`` what leaves block ``i``, and layer ``num_layers`` what leaves the backbone: the state
    after the final norm, on which the LM head works. An ``Output`` is what one half of a block adds
    to the residual stream (:mod:`safeswitch.models.outputs`). The hooks are gone after the block,
    also after an exception and after a failure half-way in.

        with Reader(lm, [4, -1]) as reader:
            lm.model(input_ids=ids, attention_mask=mask)
            reader.states[4]  # [b, d]

    Args:
        lm: The model to read.
        sites: Layer numbers, negative ones counting from the end, and outputs of blocks.
        keep: What to keep of ``hidden [b, t, d]``: one function, or one a site (resolved). It may
            be replaced between forward passes. What it returns is copied when it shares memory with
            the layer's output, so that nothing else of that output stays alive. Default:
            :func:`keep_last`.

    Attributes:
        sites: The resolved sites, each once: layer numbers ascending, then outputs.
        states: By site, what was kept of the latest forward pass, on the layer's own device.

    Raises:
        SettingError: a layer or block that the model does not have.
        ModelError: an output, of a block in which it cannot be found.
    """

    def __init__(
        self, lm: LanguageModel, sites: Iterable[Site], keep: Keep | Mapping[Site, Keep] = keep_last
    ) -> None:
        self.lm = lm
        self.sites: tuple[Site, ...] = tuple(sorted({lm.site(site) for site in sites}, key=_order))
        self.keep = keep
        self.states: dict[Site, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Reader:
        if self._handles:
            raise SettingError("Reader: it is open already; use one Reader for each with block")
        try:
            for site in self.sites:
                self._handles.append(self._install(site))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _install(self, site: Site) -> RemovableHandle:
        parts = self.lm.parts
        where = f"output {site}" if isinstance(site, Output) else f"layer {site}"

        def after(_module: nn.Module, _args: object, output: object) -> None:
            self._store(site, hidden_in(output, where))

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: JsonObject) -> None:
            self._store(site, hidden_in(args or kwargs.get("hidden_states"), where))

        if isinstance(site, Output):
            return self.lm.outputs[site].register_forward_hook(after)
        if site == self.lm.num_layers:
            return parts.backbone.register_forward_hook(after)
        if site == 0:
            return parts.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
        return parts.blocks[site - 1].register_forward_hook(after)

    def _store(self, site: Site, hidden: Tensor) -> None:
        keep = self.keep[site] if isinstance(self.keep, Mapping) else self.keep
        kept = keep(hidden)
        if kept.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr():
            kept = kept.clone()
        self.states[site] = kept


def _order(site: Site) -> tuple[bool, int, str]:
    """Layers before outputs, each by number."""
    if isinstance(site, Output):
        return True, site.block, site.part
    return False, site, ""
