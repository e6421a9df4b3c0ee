"""Requests whose label stands in their first word, a judge by id, settings that fit in a second,
and a fitted switch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from safeswitch.core.types import Example, Message
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.switch import Switch
from tests.tiny import tiny_lm

WORDS = ("river", "stone", "cloud", "apple", "train", "violin", "garden", "winter")
HEAD = HeadSettings(ranks=(1,), epochs=4)
SMALL = FitSettings(
    budget=0.125,
    max_new_tokens=4,
    pilot=1,
    readers=("layers",),
    layers=(2, -1),
    head=HEAD,
    trust_replies=True,
)


def requests(n: int = 80, *, replies: bool = True) -> list[Example]:
    """Half of them unsafe (they begin with ZAP), from three sources that all hold both labels."""
    return [
        Example(
            f"r{i}",
            (
                Message(
                    "user", f"{'ask' if i % 2 else 'ZAP'} {WORDS[i % 8]} {WORDS[i // 8 % 8]} {i}"
                ),
            ),
            "safe" if i % 2 else "unsafe",
            source=f"s{i // 2 % 3}",
            reply=None if i % 2 or not replies else "No, sorry.",
        )
        for i in range(n)
    ]


def two_of_three(example: Example, reply: str) -> bool:
    """A compliance judge under which both outcomes occur for both labels."""
    return int(example.id.removeprefix("r")) % 3 != 0


def settings(**changes: Any) -> FitSettings:
    return replace(SMALL, **changes)


@cache
def model() -> LanguageModel:
    return tiny_lm("llama")


@cache
def engine() -> TransformersEngine:
    return TransformersEngine(model(), batch_size=64)


@cache
def fitted() -> Switch:
    """Two stages, three kinds of readers, a watch, a low-rank head, fitted on the tiny model."""
    chosen = settings(
        readers=("layers", "window", "text"), watch=True, watch_every=2, budget=0.25, window=6
    )
    return Switch.fit(engine(), requests(), chosen, complied=two_of_three)
