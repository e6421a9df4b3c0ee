"""What the halves of a block add to the residual stream: found by experiment, not by names.

A block takes a state h and gives h + a + m, where a comes of its attention (or of the mixer of
tokens in its place) and m of its MLP or experts, one after the other or side by side. A few tokens
are run through the model, and the two of a block's own modules are taken whose outputs make up
what it adds. Where a half's output goes through a norm before it is added (Gemma 2 and 3, OLMo 2),
that norm is the module found, since what is read is what is added. Blocks that scale what they add
(Granite), that add inside a module (BLOOM, MPT), or that have one half or three (Mamba, Falcon H1)
are not read.

Shapes: t tokens, d hidden size. Knows nothing of probers or positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from safeswitch.core.errors import ModelError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import PARTS, Output
from safeswitch.models.locate import Parts, hidden_in
from safeswitch.models.offload import compute_device

_TOKENS = 5
_ROUNDINGS = 4
"""Roundings of the stream's dtype within which a sum counts as equal; adding twice makes one."""


@dataclass(frozen=True)
class Outputs:
    """The modules whose outputs are added to the residual stream.

    Args:
        modules: By output; both of a block, or neither.
        name: The model's class, for messages.
        depth: How many blocks it has.
    """

    modules: Mapping[Output, nn.Module]
    name: str
    depth: int

    def __getitem__(self, output: Output) -> nn.Module:
        """The module of one output.

        Raises:
            ModelError: its block adds something else than two outputs of its own modules.
        """
        if output not in self.modules:
            blocks = sorted({found.block for found in self.modules})
            alone = f"of blocks {', '.join(map(str, blocks))} alone"
            have = alone if blocks else "of none of its blocks"
            raise ModelError(
                f"{self.name}: output {output} cannot be read: what the block adds to the residual "
                "stream is not the sum of the outputs of two of its modules. Outputs can be read "
                f"{have}, and the residual stream at layers 0..{self.depth} (--readers layers or "
                "steps)"
            )
        return self.modules[output]


@torch.no_grad()
def find_outputs(model: PreTrainedModel, parts: Parts) -> Outputs:
    """Run five tokens through ``model`` and compare; leaves no trace on it.

    Raises:
        ModelError: it cannot be run.
    """
    vocab = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocab, (1, _TOKENS), generator=torch.Generator().manual_seed(0))
    ids = ids.to(compute_device(model.get_input_embeddings()))
    modules: dict[Output, nn.Module] = {}
    with ExitStack() as stack:
        for number, block in enumerate(parts.blocks, 1):
            _watch(number, block, modules, stack)
        try:
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            name = type(model).__name__
            raise ModelError(
                f"{name} cannot be run to find what its blocks add: {error}"
            ) from error
    return Outputs(modules, type(model).__name__, len(parts.blocks))


@dataclass
class _Seen:
    """What one run of a block showed, float64 ``[t, d]`` on the host."""

    before: Tensor | None = None
    inner: list[tuple[nn.Module, Tensor]] = field(default_factory=list)


def _watch(
    number: int, block: nn.Module, modules: dict[Output, nn.Module], stack: ExitStack
) -> None:
    """Have both outputs of a block put into ``modules`` when it runs, while ``stack`` is open."""
    seen = _Seen()

    def enter(_block: nn.Module, args: tuple[object, ...], kwargs: JsonObject) -> None:
        seen.before = _host(args or kwargs.get("hidden_states"))

    def inside(module: nn.Module, _args: object, output: object) -> None:
        found = _host(output)
        if found is not None:
            seen.inner.append((module, found))

    def leave(_block: nn.Module, _args: object, output: object) -> None:
        dtype = hidden_in(output, f"block {number}").dtype
        pair = _pair(seen, _host(output), torch.finfo(dtype).eps)
        if pair is not None:
            for part, module in zip(PARTS, pair, strict=True):
                modules[Output(number, part)] = module
        seen.inner.clear()

    stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
    for child in block.children():
        stack.callback(child.register_forward_hook(inside).remove)
    # In front of others, so that a steering vector in force is not part of what is compared.
    stack.callback(block.register_forward_hook(leave, prepend=True).remove)


def _host(found: object) -> Tensor | None:
    """The hidden states in what a module took or gave, a copy; None where there are none."""
    try:
        return hidden_in(found, "module")[0].to("cpu", torch.float64, copy=True)
    except ModelError:
        return None


def _pair(seen: _Seen, after: Tensor | None, eps: float) -> tuple[nn.Module, nn.Module] | None:
    """The two modules, in the order in which they ran, whose outputs make up what the block adds.

    Of several pairs within rounding the nearest one, the first where they are equal (a dropout
    hands on what it is given).
    """
    if seen.before is None or after is None:
        return None
    before = seen.before
    best, found = float("inf"), None
    alike = [(module, output) for module, output in seen.inner if output.shape == before.shape]
    for (first, a), (second, m) in combinations(alike, 2):
        miss = (before + a + m - after).abs()
        size = before.abs() + a.abs() + m.abs() + after.abs()
        total = float(miss.sum())
        if bool((miss <= _ROUNDINGS * eps * size).all()) and total < best:
            best, found = total, (first, second)
    return found
