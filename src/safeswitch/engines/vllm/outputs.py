"""What the halves of a block add to the residual stream, let out of vLLM's model classes.

Layers made like Llama's return a pair: what the MLP adds, and the stream behind the attention. vLLM
hands each pair to ``EagleModelMixin._maybe_add_hidden_state``
(``model_executor/models/interfaces.py``, read in 0.32.0), to let out the stream in front of the
next block, which is their sum. So the MLP's output is the first of the pair, and the attention's
the second less the sum of the block before. All of it happens on local tensors, so that it compiles
like the rest of the model.

The attention's output is thus what it added to the stream after rounding: in bfloat16 it differs
from what transformers reads by the rounding of the stream, in float32 by nothing that counts.

Letters: t tokens, d hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from safeswitch.core.errors import ModelError
from safeswitch.core.types import Output, Site

if TYPE_CHECKING:
    from vllm.model_executor.models.interfaces import EagleModelMixin


_MODELS = "vllm.model_executor.models"
PAIRED: tuple[str, ...] = (
    f"{_MODELS}.llama.LlamaDecoderLayer",
    f"{_MODELS}.mistral.MistralDecoderLayer",
    f"{_MODELS}.qwen2.Qwen2DecoderLayer",
    f"{_MODELS}.qwen3.Qwen3DecoderLayer",
    f"{_MODELS}.qwen3_moe.Qwen3MoeDecoderLayer",
)
"""Layers whose ``forward`` was read: returns what the MLP adds, and the stream before it."""


class Tap(NamedTuple):
    """One tensor that is let out behind a block.

    Args:
        site: What it is.
        before: Of an attention's output, the place of the stream in front of its block among all
            that is let out.
    """

    site: Site
    before: int = -1


Taps = dict[int, tuple[Tap, ...]]
"""By the number of a block; 0 stands for what enters the first one."""


def plan_taps(sites: Iterable[Site]) -> Taps:
    """What must be let out behind each block, that ``sites`` can be read.

    The streams that attention outputs are subtracted from are among it, whether asked for or not.
    """
    wanted = set(sites)
    outputs = [site for site in wanted if isinstance(site, Output)]
    wanted |= {output.block - 1 for output in outputs if output.part == "attn"}
    found: dict[int, list[Tap]] = {}
    place: dict[Site, int] = {}
    for site in sorted(wanted, key=_order):
        before = -1
        if isinstance(site, Output) and site.part == "attn":
            before = place[site.block - 1]
        place[site] = len(place)
        number = site.block if isinstance(site, Output) else site
        found.setdefault(number, []).append(Tap(site, before))
    return {number: tuple(taps) for number, taps in found.items()}


def _order(site: Site) -> tuple[int, str]:
    return (site.block, site.part) if isinstance(site, Output) else (site, "")


def let_out(holder: EagleModelMixin, taps: Taps) -> None:
    """Have a vLLM model (an ``EagleModelMixin``) let out ``taps``, in their order.

    Raises:
        ModelError: a block whose layer is none of ``PAIRED``.
    """
    refuse_unless_paired(holder.layers)
    holder._maybe_add_hidden_state = partial(_add, taps)


def refuse_unless_paired(layers: Iterable[nn.Module]) -> None:
    """Raise :class:`ModelError` for layers that may return something else than a pair."""
    for layer in layers:
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        if kind not in PAIRED:
            allowed = ", ".join(name.rpartition(".")[2] for name in PAIRED)
            raise ModelError(
                f"vLLM's {type(layer).__name__} is not known to let out what attention and MLP "
                f"add; known are {allowed}. Fit the bundle with --readers layers or steps, or "
                "serve it with --engine transformers"
            )


def _add(
    taps: Taps, let: list[Tensor], number: int, hidden: Tensor, residual: Tensor | None
) -> list[Tensor]:
    """Append what is let out behind block ``number`` to ``let``, ``[t, d]`` each.

    All of it is new memory: the next layer's norm writes to both halves of the pair in place.
    """
    for tap in taps.get(number, ()):
        if residual is None:
            let.append(hidden.clone())
        elif not isinstance(tap.site, Output):
            let.append(hidden + residual)
        elif tap.site.part == "mlp":
            let.append(hidden.clone())
        else:
            let.append(residual - let[tap.before])
    return let
