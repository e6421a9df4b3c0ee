"""Tiny random vision-language models with processors built in code: no network, no files."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from safeswitch.models.language_model import LanguageModel
from tests.tiny import BOS, EOS, PAD, VOCAB, _redraw, tiny_tokenizer

PARTS_TEMPLATE = (
    "<bos>{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}"
    "{{ p.text }}{% endif %}{% endfor %}<eos>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template that takes turns in parts, as those of vision-language models do."""
FAMILIES = ("llava", "qwen2_vl")
_TOKENS = {
    "llava": ("<image>",),
    "qwen2_vl": ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
}
_MARKS = {"llava": "<image>", "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


def vision_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """``tiny_tokenizer`` with the family's image tokens behind its own."""
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(t, special=True, normalized=False) for t in _TOKENS[family]
            ]
        },
        replace_extra_special_tokens=False,
    )
    return tokenizer


class ImagesOnly(transformers.Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL's processor without its part for videos, which cannot be had without torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        return type(None)


def vision_processor(family: str) -> Any:
    """The family's own processor: 14 x 14 images in LLaVA, multiples of 8 in Qwen2-VL, four image
    tokens or more."""
    template = PARTS_TEMPLATE.replace("IMAGE", _MARKS[family])
    if family == "llava":
        images = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14}
        )
        return transformers.LlavaProcessor(
            images,
            vision_tokenizer(family),
            patch_size=7,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
    )
    return ImagesOnly(images, vision_tokenizer(family), None, chat_template=template)


def vision_model(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of the family; its language model has three layers of width 32."""
    ids = {token: VOCAB + i for i, token in enumerate(_TOKENS[family])}
    text = {**_TEXT, "vocab_size": VOCAB + len(ids)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llava":
            vision = transformers.CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=14,
                patch_size=7,
            )
            config: Any = transformers.LlavaConfig(
                vision_config=vision,
                text_config=transformers.LlamaConfig(**text, head_dim=8),
                image_token_index=ids["<image>"],
                image_seq_length=4,
                tie_word_embeddings=False,
            )
            built: Any = transformers.LlavaForConditionalGeneration(config)
        else:
            rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
            config = transformers.Qwen2VLConfig(
                text_config={**text, "rope_parameters": rope},
                vision_config={
                    "depth": 2,
                    "embed_dim": 16,
                    "hidden_size": 32,
                    "num_heads": 2,
                    "mlp_ratio": 2,
                    "patch_size": 4,
                    "spatial_merge_size": 2,
                    "temporal_patch_size": 2,
                    "in_channels": 3,
                },
                image_token_id=ids["<|image_pad|>"],
                video_token_id=ids["<|video_pad|>"],
                vision_start_token_id=ids["<|vision_start|>"],
                vision_end_token_id=ids["<|vision_end|>"],
                tie_word_embeddings=False,
            )
            built = transformers.Qwen2VLForConditionalGeneration(config)
    model: PreTrainedModel = built.float().eval()
    _redraw(model, seed)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCAB:] = (
            0.0  # a model that was trained writes no image tokens
        )
    return model


@cache
def vision_lm(family: str) -> LanguageModel:
    """Model and processor of the family as a :class:`LanguageModel`."""
    processor = vision_processor(family)
    return LanguageModel(
        vision_model(family), processor.tokenizer, model_id=f"tiny-{family}", processor=processor
    )


def picture(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    """Noise."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
