"""Guarded models and logits processors of this process, for those that vLLM makes without telling
them whom they serve."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

_MODELS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_PROCESSORS: WeakValueDictionary[int, Any] = WeakValueDictionary()


def keep(vllm_config: Any, model: Any) -> None:
    """Remember the guarded model of an engine.

    Known by the part of the configuration that vLLM itself registers layers in: the configuration's
    ``instance_id`` changes after the model has been loaded where worker and engine share a process
    (one GPU), and copies of it share this part.
    """
    model.safeswitch_key = (
        vllm_config.compilation_config
    )  # as long as the model lives, nobody else has this identity
    _MODELS[id(vllm_config.compilation_config)] = model


def find(vllm_config: Any) -> Any:
    """The guarded model of an engine; None where there is none."""
    return _MODELS.get(id(vllm_config.compilation_config))


def at_work(vllm_config: Any, processor: Any) -> None:
    """Remember that an engine has built the logits processor; it is made before the model is
    loaded."""
    processor.safeswitch_key = vllm_config.compilation_config
    _PROCESSORS[id(vllm_config.compilation_config)] = processor


def is_at_work(vllm_config: Any) -> bool:
    """Whether the engine has the logits processor."""
    return id(vllm_config.compilation_config) in _PROCESSORS
