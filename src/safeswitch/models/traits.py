"""What an architecture can do, found by experiment instead of by a list of names.

Two questions decide how a batch may be run. Left padding: does a padded row give what the row alone
gives? Masking
back: may cached positions be masked out and generation resume as if they had never been? Models
    with recurrent state,
and positional schemes that ignore the mask, answer no and are run the slow, correct way.

A third says what happens on the way from the final norm to the LM head: nothing, as a rule, but
some models scale.

Knows nothing of prompts, probers or switches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from safeswitch.core.errors import ModelError
from safeswitch.core.json_types import JsonObject
from safeswitch.models.locate import locate
from safeswitch.models.offload import compute_device

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""Names under which models take and return their cache: from ``transformers`` 5.24 on the first,
before it the others."""

_PROMPT, _PILOT = 5, 2


@dataclass(frozen=True)
class Traits:
    """Answers for one model.

    Args:
        pads_left: A left-padded row gives what the row alone gives.
        masks_back: Cached positions can be masked out and their position numbers used again.
        window: Smallest sliding window of any layer in tokens, None when every layer sees
            everything; masking back is sound only while the whole sequence is no longer than this.
        rope_switch: Tokens from which on the model turns to other rotary frequencies, for the whole
            batch as soon as one row is longer (``longrope``, ``dynamic``); rows on both sides of it
            must not share a batch, nor rows of different lengths beyond it. None when there is no
            such length.
        head_scale: The LM head is given the backbone's output times this; None when it is given
            something else again.
    """

    pads_left: bool
    masks_back: bool
    window: int | None
    rope_switch: int | None = None
    head_scale: float | None = 1.0


@torch.no_grad()
def find_traits(model: PreTrainedModel) -> Traits:
    """Run at most ten tokens through ``model`` and compare; leaves no trace on it."""
    device = compute_device(model.get_input_embeddings())
    vocab = model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (1, _PROMPT + _PILOT + 2), generator=draw).to(device)
    prompt, pilot, after = ids[:, :_PROMPT], ids[:, _PROMPT : _PROMPT + _PILOT], ids[:, -2:]
    try:
        length = _PROMPT + 2
        reference = _run(
            model, [torch.cat([prompt, after], 1)], [torch.ones(1, length)], [_positions(length)]
        )
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run with attention_mask and a cache: {error}"
        ) from error
    exact = model.dtype in (torch.float32, torch.float64)
    return Traits(
        pads_left=_same(reference, lambda: _padded(model, prompt, after), exact),
        masks_back=_dynamic(model, prompt)
        and _same(reference, lambda: _masked_back(model, prompt, pilot, after), exact),
        window=_window(model, prompt),
        rope_switch=_rope_switch(model),
        head_scale=_head_scale(model, prompt, exact),
    )


def _positions(length: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + length)[None]


def _run(
    model: PreTrainedModel, chunks: list[Tensor], masks: list[Tensor], positions: list[Tensor]
) -> Tensor:
    """Feed chunk after chunk through one cache; logits ``[vocab]`` at the last token."""
    takes_positions = "position_ids" in _parameters(model)
    cache_name, cache = _cache_name(model), None
    logits = torch.empty(0)
    for ids, mask, position in zip(chunks, masks, positions, strict=True):
        extra: JsonObject = {cache_name: cache} if cache is not None else {}
        if takes_positions:
            extra["position_ids"] = position.to(ids.device)
        output = model(
            input_ids=ids, attention_mask=mask.long().to(ids.device), use_cache=True, **extra
        )
        cache, logits = getattr(output, cache_name), output.logits[0, -1].float()
    return logits


def _padded(model: PreTrainedModel, prompt: Tensor, after: Tensor) -> Tensor:
    pad = torch.zeros(1, 2, dtype=torch.long, device=prompt.device)
    mask = torch.ones(1, 2 + _PROMPT + 2)
    mask[:, :2] = 0
    positions = torch.cat([torch.zeros(1, 2, dtype=torch.long), _positions(_PROMPT)], 1)
    return _run(
        model,
        [torch.cat([pad, prompt], 1), after[:, :1], after[:, 1:]],
        [mask[:, :-2], mask[:, :-1], mask],
        [positions, _positions(1, _PROMPT), _positions(1, _PROMPT + 1)],
    )


def _masked_back(model: PreTrainedModel, prompt: Tensor, pilot: Tensor, after: Tensor) -> Tensor:
    length = _PROMPT + _PILOT
    mask = torch.ones(1, length + 2)
    back = mask.clone()
    back[:, _PROMPT:length] = 0
    return _run(
        model,
        [prompt, pilot[:, :1], pilot[:, 1:], after[:, :1], after[:, 1:]],
        [mask[:, :_PROMPT], mask[:, : _PROMPT + 1], mask[:, :length], back[:, : length + 1], back],
        [
            _positions(_PROMPT),
            _positions(1, _PROMPT),
            _positions(1, _PROMPT + 1),
            _positions(1, _PROMPT),
            _positions(1, _PROMPT + 1),
        ],
    )


def _same(reference: Tensor, run: Callable[[], Tensor], exact: bool) -> bool:
    try:
        found = run()
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError):
        return False
    scale = reference.abs().max().clamp_min(1e-6)
    tolerance = 2e-5 if exact else 6e-2
    return bool((found - reference).abs().max() <= tolerance * scale)


def _parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _cache_name(model: PreTrainedModel) -> str:
    names = _parameters(model)
    for name in CACHE_NAMES:
        if name in names:
            return name
    raise ModelError(
        f"{type(model).__name__} takes no cache: none of {', '.join(CACHE_NAMES)} is an argument "
        "of its forward"
    )


def _cache_layers(model: PreTrainedModel, prompt: Tensor) -> list[CacheLayerMixin]:
    name = _cache_name(model)
    cache = getattr(model(input_ids=prompt, use_cache=True), name)
    return list(getattr(cache, "layers", []))


def _dynamic(model: PreTrainedModel, prompt: Tensor) -> bool:
    layers = _cache_layers(model, prompt)
    return bool(layers) and all(
        isinstance(x, DynamicLayer) and not hasattr(x, "conv_states") for x in layers
    )


def _window(model: PreTrainedModel, prompt: Tensor) -> int | None:
    """The smallest window that the cache layers or, where these keep everything (GPT-Neo), the
    config tell of."""
    windows = [getattr(layer, "sliding_window", None) for layer in _cache_layers(model, prompt)]
    config = model.config.get_text_config()
    if "local" in (getattr(config, "attention_layers", None) or ()):
        windows.append(getattr(config, "window_size", None))
    return min((int(w) for w in windows if w), default=None)


def _head_scale(model: PreTrainedModel, prompt: Tensor, exact: bool) -> float | None:
    """The one number by which the backbone's output is multiplied before the LM head, by least
    squares."""
    parts, seen = locate(model), {}

    def leave(_module: nn.Module, _args: object, output: tuple[Tensor, ...]) -> None:
        seen["backbone"] = output[0][0, -1].to("cpu", torch.float64)

    def enter(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["head"] = args[0][0, -1].to("cpu", torch.float64)

    with ExitStack() as stack:
        stack.callback(parts.backbone.register_forward_hook(leave).remove)
        stack.callback(parts.head.register_forward_pre_hook(enter).remove)
        model(input_ids=prompt, use_cache=False)
    before, after = seen["backbone"], seen["head"]
    if torch.equal(before, after):
        return 1.0
    if before.shape != after.shape:
        return None
    scale = float((before @ after) / (before @ before))
    same = (after - scale * before).abs().max() <= (1e-5 if exact else 1e-2) * after.abs().max()
    return scale if bool(same) else None


def _rope_switch(model: PreTrainedModel) -> int | None:
    """The length that ``longrope`` and ``dynamic`` rotary schemes were trained up to; a short run
    does not show it."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    lengths = []
    for settings in (rope, *rope.values()):
        if isinstance(settings, dict) and settings.get("rope_type") in ("longrope", "dynamic"):
            trained = settings.get("original_max_position_embeddings")
            trained = trained or getattr(config, "original_max_position_embeddings", None)
            lengths.append(trained or getattr(config, "max_position_embeddings", None))
    return min((int(length) for length in lengths if length), default=None)
