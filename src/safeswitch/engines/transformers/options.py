"""Which decoding options are honoured: the caller's and the model's own become one
``GenerationConfig``, or are refused.

Knows ``transformers``' options. Knows nothing of gates, rows or text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import (
    GenerationConfig,
    LogitsProcessor,
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
)

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonMapping
from safeswitch.models.traits import CACHE_NAMES

_ASSISTED = "assisted decoding proposes tokens past the gate"
_BEAMS = "beam search has no single running text that could be held back"
_PLAIN = "replies carry tokens and the Decision"
_REFUSED = {
    "num_beams": _BEAMS,
    "num_beam_groups": _BEAMS,
    "constraints": _BEAMS,
    "force_words_ids": _BEAMS,
    "num_return_sequences": "repeat the prompt instead",
    "assistant_model": _ASSISTED,
    "prompt_lookup_num_tokens": _ASSISTED,
    "assistant_early_exit": _ASSISTED,
    "use_mtp": _ASSISTED,
    "guidance_scale": "classifier-free guidance runs a second forward pass per token",
    "cache_implementation": "only the dynamic cache can roll a row back",
    "use_cache": "the loop feeds one token at a time and needs the cache",
    "penalty_alpha": "contrastive search looks ahead past the gate",
    "dola_layers": "DoLa takes tokens from other layers than the one that is gated",
    **dict.fromkeys(CACHE_NAMES, "the engine owns the cache"),
    "custom_generate": "the engine uses it itself",
    "output_scores": "scores are in the Decision",
    "output_logits": _PLAIN,
    "output_attentions": _PLAIN,
    "output_hidden_states": _PLAIN,
    "return_dict_in_generate": _PLAIN,
}
_ALLOWED: dict[str, tuple[int | bool | str, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "use_cache": (True,),
    "cache_implementation": ("dynamic",),
}
_SWITCHED_OFF = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
)


@dataclass(frozen=True)
class Options:
    """Everything that shapes decoding, the same on both sides of the switch.

    Args:
        max_new_tokens: Longest reply.
        stop: Strings that end a reply.
        config: What ``transformers`` is given.
        processors: The caller's logits processors.
        criteria: The caller's stopping criteria.
        show_thinking: Whether text holds the model's thinking.
        thinking_budget: Tokens after which thinking is made to end.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    config: GenerationConfig
    processors: Sequence[LogitsProcessor]
    criteria: Sequence[StoppingCriteria]
    show_thinking: bool = True
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise SettingError(
                f"generate: thinking_budget must be 0 tokens or more; got {self.thinking_budget}"
            )

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a reply."""
        ends = self.config.eos_token_id
        return (
            set(ends) if isinstance(ends, list | tuple) else {ends} if ends is not None else set()
        )


def make_options(
    own: GenerationConfig,
    limits: Sequence[int],
    stop: str | Sequence[str],
    keywords: JsonMapping,
    pad_token_id: int,
    show_thinking: bool = True,
    thinking_budget: int | None = None,
) -> Options:
    """Put together what the caller asks for (``limits``: reply tokens of each prompt) and, where
    the caller says nothing, what ``own``, the model's config, says.

    Of ``own``, another cache than the dynamic one, switching the cache off and further outputs are
    passed over: they do not change which tokens are chosen.

    Raises:
        SettingError: an option that does not exist, or one that cannot be honoured on both sides of
            the switch.
    """
    if min(limits, default=1) < 1:
        raise SettingError(f"generate: max_new_tokens must be 1 or more; got {min(limits)}")
    max_new_tokens = max(limits, default=1)
    _refuse(keywords)
    rest = dict(keywords)
    given, processors, criteria = (
        rest.pop(n, None) for n in ("generation_config", "logits_processor", "stopping_criteria")
    )
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    unknown = sorted(name for name in rest if name not in vars(GenerationConfig()))
    if unknown:
        raise SettingError(f"generate: unknown options {', '.join(unknown)}")
    try:
        config.update(**rest)
    except ValueError as error:
        raise SettingError(f"generate: {error}") from error
    _refuse(vars(config))
    if config.pad_token_id is None:  # not the model's own, which may have no row in its embedding
        config.pad_token_id = pad_token_id
    _inherit(config, own)
    config.max_new_tokens = max_new_tokens
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    more, config.stop_strings = config.stop_strings or (), None
    stops += (more,) if isinstance(more, str) else tuple(more)
    return Options(
        max_new_tokens,
        tuple(s for s in stops if s),
        config,
        tuple(processors or ()),
        tuple(criteria or ()),
        show_thinking,
        thinking_budget,
    )


def _inherit(config: GenerationConfig, own: GenerationConfig) -> None:
    """Fill what ``config`` leaves open from ``own``; ``transformers`` does the same again with
    whatever is still None."""
    passed_over = {*_SWITCHED_OFF, "use_cache", "cache_implementation"}
    for name, value in vars(own).items():
        if (
            not name.startswith("_")
            and name not in passed_over
            and getattr(config, name, None) is None
        ):
            setattr(config, name, copy.deepcopy(value))
    _refuse(vars(config), " in the model's generation config")
    if own.stop_strings is not None:
        raise SettingError(
            f"generate: stop_strings={own.stop_strings!r} in the model's generation config is not "
            "supported: set it to None there and pass stop_strings"
        )
    config.use_cache = True
    if own.cache_implementation is not None:
        config.cache_implementation = "dynamic"
    for name in _SWITCHED_OFF:
        setattr(config, name, False)


def _refuse(values: JsonMapping, where: str = "") -> None:
    for name, reason in _REFUSED.items():
        value = values.get(name)
        harmless = value is None or value in _ALLOWED.get(name, (False,))
        if not harmless:
            raise SettingError(f"generate: {name}={value!r}{where} is not supported: {reason}")
    marks = values.get("watermarking_config")
    if isinstance(marks, SynthIDTextWatermarkingConfig):
        raise SettingError(
            f"generate: watermarking_config=SynthIDTextWatermarkingConfig(...){where} is not "
            "supported: its processor keeps a state from token to token, which differs between the "
            "two sides of the switch"
        )
