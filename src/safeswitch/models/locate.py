"""Find the parts of a decoder-only model by their shape, not by their family.

Backbone: the module that maps tokens to final-norm states. Blocks: the list of its transformer
    layers. Head: the output
embedding. Knows nothing of tokenizers or of what is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from safeswitch.core.errors import ModelError


@dataclass(frozen=True)
class Parts:
    """The places where states are read and logits changed.

    Args:
        body: What is run to have the backbone run: the backbone itself, or in a vision-language
            model the module that puts images among its inputs.
        backbone: Maps tokens to final-norm states.
        blocks: Its layers.
        head: The LM head.
        tied: Whether the head shares the embedding's weight.
    """

    body: nn.Module
    backbone: nn.Module
    blocks: nn.ModuleList
    head: nn.Module
    tied: bool


def locate(model: PreTrainedModel) -> Parts:
    """Find backbone, blocks and LM head of ``model``.

    Raises:
        ModelError: an encoder-decoder, a model without LM head, or one whose block list cannot be
            told.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; only decoder-only models are supported")
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{name} has no LM head (get_output_embeddings() is None); load it as "
            "AutoModelForCausalLM"
        )
    backbone = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if backbone is None or backbone is model:
        backbone = model.base_model
    embedding = model.get_input_embeddings()
    if backbone is model:  # Llama 4: neither get_decoder nor base_model finds it
        backbone = next(
            (child for child in model.children() if embedding in child.modules()), model
        )
    if backbone is model or backbone is embedding:
        raise ModelError(f"{name}: cannot tell the backbone from the model")
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise ModelError(f"{name}: found no list of {depth} blocks below {type(backbone).__name__}")
    tied = embedding is not None and getattr(head, "weight", None) is getattr(
        embedding, "weight", object()
    )
    body = (
        model.base_model
        if sees_images(model.config) and backbone in model.base_model.modules()
        else backbone
    )
    return Parts(body, backbone, lists[0], head, tied)


def sees_images(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration has a vision part."""
    return getattr(config, "vision_config", None) is not None


def hidden_in(found: object, where: str) -> Tensor:
    """The hidden states ``[b, t, d]`` in what a block, a part of one, or a backbone took or gave.

    Args:
        found: A tensor, a tuple that begins with one, or an output with ``last_hidden_state``.
        where: What it came from, for messages.

    Raises:
        ModelError: there are none.
    """
    found = getattr(found, "last_hidden_state", found)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.dim() != 3:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{where} does not hold hidden states [batch, tokens, size]; got {got}")
    return found
