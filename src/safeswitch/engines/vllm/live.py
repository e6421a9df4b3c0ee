"""Guarded models and logits processors of this process, for those that vLLM makes without telling
them whom they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from safeswitch.engines.vllm.model import GuardedModel
    from safeswitch.engines.vllm.processor import SafeSwitchProcessor


_MODELS: WeakValueDictionary[int, GuardedModel] = WeakValueDictionary()
_PROCESSORS: WeakValueDictionary[int, SafeSwitchProcessor] = WeakValueDictionary()


def keep(vllm_config: VllmConfig, model: GuardedModel) -> None:
    """Remember the guarded model of an engine.

    Known by the part of the configuration that vLLM itself registers layers in: the configuration's
    ``instance_id`` changes after the model has been loaded where worker and engine share a process
    (one GPU), and copies of it share this part.
    """
    model.safeswitch_key = (
        vllm_config.compilation_config
    )  # as long as the model lives, nobody else has this identity
    _MODELS[id(vllm_config.compilation_config)] = model


def find(vllm_config: VllmConfig) -> GuardedModel | None:
    """The guarded model of an engine; None where there is none."""
    return _MODELS.get(id(vllm_config.compilation_config))


def at_work(vllm_config: VllmConfig, processor: SafeSwitchProcessor) -> None:
    """Remember that an engine has built the logits processor; it is made before the model is
    loaded."""
    processor.safeswitch_key = vllm_config.compilation_config
    _PROCESSORS[id(vllm_config.compilation_config)] = processor


def is_at_work(vllm_config: VllmConfig) -> bool:
    """Whether the engine has the logits processor."""
    return id(vllm_config.compilation_config) in _PROCESSORS
