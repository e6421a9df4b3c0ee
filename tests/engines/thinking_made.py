"""Tiny models that think: the template opens their thinking, and a token that their greedy replies
hold ends it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thinking
from tests.engines.slow import Projection, reply_alone, states_alone
from tests.tiny import CHAT_TEMPLATE, SPECIALS, tiny_lm

START = SPECIALS.index("<|think|>")
ENDS = {"llama": 34, "qwen3": 160, "gemma2": 159, "gpt2": 32, "mamba": 160}
"""A token that some greedy replies to the tests' prompts hold, at different places, and others do
not."""
OPEN_TEMPLATE = CHAT_TEMPLATE.replace("<|assistant|>{%", "<|assistant|><|think|>{%")
NEW = 20


def thinking_lm(
    name: str = "llama", *, template: str = OPEN_TEMPLATE, start: Sequence[int] = (START,)
) -> LanguageModel:
    """A tiny model of which ``ENDS[name]`` is the end mark."""
    lm = tiny_lm(name, chat_template=template)
    lm.thinking = Thinking(("<|think|>", "(end)"), tuple(start), (ENDS[name],), lm.tokenizer)
    return lm


def answer_by_hand(lm: LanguageModel, reply: Sequence[int]) -> int | None:
    """Tokens in front of the answer of a reply whose thinking the prompt has opened."""
    end = lm.needs_thinking().end[0]
    return list(reply).index(end) + 1 if end in reply else None


_REPLIES: dict[tuple[str, tuple[int, ...]], list[int]] = {}


def plain_reply(lm: LanguageModel, row: Sequence[int]) -> list[int]:
    """The reply of the untouched model, worked out once."""
    key = lm.fingerprint, tuple(row)
    if key not in _REPLIES:
        _REPLIES[key] = reply_alone(lm, row, NEW)
    return list(_REPLIES[key])


def read_by_hand(lm: LanguageModel, row: Sequence[int], k: int) -> tuple[int, list[int]]:
    """The reply of the untouched model, and after how many of its tokens ``answer:k`` is read."""
    reply = plain_reply(lm, row)
    start = answer_by_hand(lm, reply)
    return (len(reply) if start is None else min(start + k, len(reply))), reply


def score_by_hand(
    lm: LanguageModel, prober: Projection, row: Sequence[int], fed: Sequence[int]
) -> float:
    """The prober's score of the newest state after a prompt and ``fed``, from a full forward
    pass."""
    states = states_alone(lm, [*row, *fed])[prober.points[0].layer][-1]
    return float(torch.sigmoid(states @ prober.direction))
