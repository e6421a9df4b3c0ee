"""What a worker is to do with one request, the flags that put the guard into vLLM, and the
releases that it was read for. Imports nothing of vLLM.

The operator's settings travel in ``--additional-config '{"safeswitch": {...}}'``; what is to be
done with one request travels in ``SamplingParams.extra_args["safeswitch"]``, written by the guarded
front end alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PretrainedConfig

from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.types import ReadPoint
from safeswitch.engines.settings import KEY, GuardSettings
from safeswitch.switch.switch import Switch

VERSIONS = ("0.32", "0.33")
"""vLLM releases whose extension points were read; ``docs/background/vllm.md`` says which of them
was run."""
_PACKAGE = "safeswitch.engines.vllm"
PROCESSOR = f"{_PACKAGE}.processor:SafeSwitchProcessor"
EXTENSION = f"{_PACKAGE}.worker.SafeSwitchWorker"
MODELS = f"{_PACKAGE}.model"
LOGPROBS = "processed_logprobs"
"""Of the head that spoke; vLLM's raw ones are the base head's."""


@dataclass(frozen=True)
class Task:
    """What a worker is to do with one request.

    Args:
        id: Key of the request's row in the worker; a resubmission keeps it.
        bundle: Name of the switch.
        mode: ``off``; ``enforce`` (roll back at once what waits for stage 2); ``pilot`` (let such a
            request write the tokens that stage 2 reads); ``observe``; ``score`` (stage 1 speaks
            alone, and nothing is written); ``refuse`` (the refusal head
            from the first token); ``judge`` (speak on a reply that has ended, whose ``fed`` tokens
            follow the prompt); ``record`` and ``record-end`` (keep states for fitting; those of an
            ended reply).
        fed: Reply tokens at the end of the prompt.
        text: What the prompt's tokens say, for readers of text.
        constrained: Whether the client's sampling bends the run (``sampling.py``): the reply is
            then not the model's own, so that stage 2 has nothing to read, and a refusal in it would
            be bent too.
        rules: What a policy has done with it, as JSON (:class:`safeswitch.switch.rules.Rules`);
            empty without one.
    """

    id: str
    bundle: str
    mode: str
    fed: int = 0
    text: str = ""
    constrained: bool = False
    rules: str = ""

    def to_args(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def of(cls, extra_args: JsonMapping | None) -> Task | None:
        """The task that a front end wrote; None for a request that came around it."""
        found = (extra_args or {}).get(KEY)
        return cls(**found) if isinstance(found, Mapping) and "id" in found else None


def stop_token(settings: GuardSettings, hf_config: PretrainedConfig) -> int:
    """The reserved id, the same in front end and worker: as set, or the model's padding token, or
    its last id."""
    if settings.stop_token is not None:
        return settings.stop_token
    ends = (
        hf_config.eos_token_id
        if isinstance(hf_config.eos_token_id, list)
        else [hf_config.eos_token_id]
    )
    pad = getattr(hf_config, "pad_token_id", None)
    return (
        int(pad)
        if pad is not None and pad >= 0 and pad not in ends
        else int(hf_config.vocab_size) - 1
    )


def prefer_v1_runner() -> None:
    """Keep vLLM on its V1 model runner, unless the operator has said otherwise, which is refused by
    name at the start (but for ``try_v2_runner``)."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


def engine_flags(settings: GuardSettings, architectures: list[str]) -> JsonObject:
    """The engine arguments that put the guard into a stock vLLM engine, by the names of
    ``AsyncEngineArgs``."""
    flags: JsonObject = {
        "additional_config": {KEY: settings.to_dict()},
        "logits_processors": [PROCESSOR],
        "worker_extension_cls": EXTENSION,
        "logprobs_mode": LOGPROBS,
        "model_class_overrides": {name: f"{MODELS}:{name}" for name in architectures},
    }
    if _reads_means(settings):
        # a mean is taken in the step that computes its tokens, so a prompt must not be cut
        flags["enable_chunked_prefill"] = False
    return flags


def _reads_means(settings: GuardSettings) -> bool:
    """Whether a bundle, or what is recorded, reads means over prompt tokens; a folder that is not
    there is left to the worker, which names it."""
    recorded = [ReadPoint.parse(point).position.kind for point in settings.record]
    folders = [folder for folder in settings.bundles.values() if Path(folder).is_dir()]
    reading = any(Switch.from_pretrained(folder).gate.reads_means for folder in folders)
    return reading or "mean" in recorded
