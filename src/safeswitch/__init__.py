"""SafeSwitch: guard a language model with its own activations.

    from safeswitch import Switch, TransformersEngine, read_examples

    engine = TransformersEngine.load("path-or-hub-id")
    switch = Switch.fit(engine, [*read_examples("unsafe.jsonl"), *read_examples("safe.jsonl")])
    replies = engine.generate(["How do I kill a process?"], switch=switch, max_new_tokens=64)

Method: arXiv 2502.01042. Names are imported on first use, so ``import safeswitch`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from safeswitch._version import __version__

if TYPE_CHECKING:
    from safeswitch.core.errors import SafeSwitchError
    from safeswitch.core.types import Decision, Example, Message, Position, ReadPoint, Reply
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.mock import MockEngine
    from safeswitch.engines.transformers.engine import TransformersEngine
    from safeswitch.fitting.refusal_head import HeadSettings
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.models.language_model import LanguageModel
    from safeswitch.switch.gate import Gate, Stage
    from safeswitch.switch.switch import Switch

_HOMES = {
    "Decision": "core.types",
    "Example": "core.types",
    "FitSettings": "switch.fit_settings",
    "Gate": "switch.gate",
    "HeadSettings": "switch.refusal_head",
    "LanguageModel": "models.language_model",
    "Message": "core.types",
    "MockEngine": "engines.mock",
    "Position": "core.types",
    "ReadPoint": "core.types",
    "Reply": "core.types",
    "SafeSwitchError": "core.errors",
    "Stage": "switch.gate",
    "Switch": "switch.switch",
    "TransformersEngine": "engines.transformers_engine",
    "read_examples": "data.readers",
}

__all__ = [
    "Decision",
    "Example",
    "FitSettings",
    "Gate",
    "HeadSettings",
    "LanguageModel",
    "Message",
    "MockEngine",
    "Position",
    "ReadPoint",
    "Reply",
    "SafeSwitchError",
    "Stage",
    "Switch",
    "TransformersEngine",
    "__version__",
    "read_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'safeswitch' has no attribute {name!r}")
    return getattr(import_module(f"safeswitch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
