"""Bundles loaded into a vLLM worker, and the checks without which the engine does not start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import vllm

from safeswitch.core.errors import FingerprintError, ModelError, SettingError
from safeswitch.engines.settings import GuardSettings, switched_off
from safeswitch.engines.vllm.guard import Tenant
from safeswitch.engines.vllm.settings import EXTENSION, LOGPROBS, PROCESSOR, VERSIONS
from safeswitch.models.fingerprint import fingerprint_of_files
from safeswitch.switch.actuators.base import HeadActuator
from safeswitch.switch.capability import vllm_refusal
from safeswitch.switch.switch import Switch

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def refuse_unless_supported(vllm_config: VllmConfig, settings: GuardSettings | None) -> None:
    """Raise for an engine in which the guard would not, or not surely, be at work.

    Raises:
        SettingError: another vLLM, speculative decoding, adapters, a part of the guard that is
            missing.
    """
    if switched_off():
        return
    if not vllm.__version__.startswith(VERSIONS):
        raise SettingError(
            f"SafeSwitch was made for vLLM {' or '.join(VERSIONS)}; this is {vllm.__version__}"
        )
    if settings is None:
        raise SettingError(
            "a part of SafeSwitch is in use, but additional_config has no 'safeswitch' entry"
        )
    config = vllm_config.model_config
    if vllm_config.speculative_config is not None:
        raise SettingError(
            "SafeSwitch does not run with speculative decoding: vLLM would leave its logits "
            "processor out"
        )
    if vllm_config.lora_config is not None and not settings.allow_other_model:
        raise SettingError(
            "SafeSwitch: LoRA adapters change the model that the switch was fitted on; measure it "
            "on the adapted model (safeswitch adapted), then set allow_other_model"
        )
    if PROCESSOR not in [p for p in config.logits_processors or [] if isinstance(p, str)]:
        raise SettingError(f"SafeSwitch: --logits-processors must name {PROCESSOR}")
    if vllm_config.parallel_config.worker_extension_cls != EXTENSION:
        raise SettingError(f"SafeSwitch: --worker-extension-cls must be {EXTENSION}")
    if config.logprobs_mode != LOGPROBS:
        raise SettingError(
            f"SafeSwitch: --logprobs-mode must be {LOGPROBS}; {config.logprobs_mode} shows the "
            "unguarded head"
        )
    if vllm_config.use_v2_model_runner and not settings.try_v2_runner:
        raise SettingError(
            "SafeSwitch has not been run on vLLM's V2 model runner: set "
            "VLLM_USE_V2_MODEL_RUNNER=0, or try_v2_runner"
        )
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size > 1 and not parallel.data_parallel_external_lb:
        raise SettingError(
            "SafeSwitch runs one engine behind each server: use an external load balancer for data "
            "parallelism"
        )
    if not config.model_class_overrides:
        raise SettingError(
            "SafeSwitch: --model-class-overrides does not name SafeSwitch's model class"
        )


def refuse_cut_prompts(vllm_config: VllmConfig) -> None:
    """Raise for an engine that may compute a prompt in parts: a mean is taken in the step that
    computes its tokens, and part of a prompt there may look like the rest of another request.

    Raises:
        SettingError: with the flag to change.
    """
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    cuts = {
        "--no-enable-chunked-prefill": scheduler.enable_chunked_prefill,
        "no --long-prefill-token-threshold": scheduler.long_prefill_token_threshold > 0,
        "neither --enable-dbo nor --ubatch-size": parallel.use_ubatching,
        "no --prefill-context-parallel-size": parallel.prefill_context_parallel_size > 1,
        "--no-enable-prefix-caching": vllm_config.cache_config.mamba_cache_mode == "align",
    }
    needed = [flag for flag, cut in cuts.items() if cut]
    if needed:
        raise SettingError(
            "a bundle reads means over prompt tokens, for which vLLM must take each prompt in one "
            f"step; this engine needs {', '.join(needed)}, or a bundle fitted with --readers steps"
        )


def load_tenants(vllm_config: VllmConfig, settings: GuardSettings) -> dict[str, Tenant]:
    """Every bundle, checked against the model and with its head on the model's device.

    Raises:
        FingerprintError: a bundle of another model.
        SettingError: a bundle that vLLM cannot run.
    """
    config = vllm_config.model_config
    print_of = (
        None
        if settings.allow_other_model
        else fingerprint_of_files(
            config.model, config.revision, trust_remote_code=config.trust_remote_code
        )
    )
    text_config = config.hf_text_config
    tenants = {}
    for name, folder in settings.bundles.items():
        switch = Switch.from_pretrained(folder)
        refusal = vllm_refusal(switch)
        if refusal is not None:
            raise SettingError(f"bundle {name!r}: {refusal}")
        if print_of is not None and switch.base is not None and switch.base.fingerprint != print_of:
            raise FingerprintError(
                f"bundle {name!r} ({folder}) was fitted on {switch.base.model_id} (fingerprint "
                f"{switch.base.fingerprint}), but the model is {config.model} (fingerprint "
                f"{print_of}); set allow_other_model if they are equivalent"
            )
        switch.actuator.check(int(text_config.hidden_size), int(text_config.vocab_size))
        tenants[name] = Tenant(name, switch.gate, _head(switch, vllm_config), switch.fingerprint)
        _check_points(name, switch, int(text_config.num_hidden_layers))
    return tenants


def _head(switch: Switch, vllm_config: VllmConfig) -> HeadActuator | None:
    head = switch.actuator.head
    return (
        None
        if head is None
        else head.to(torch.get_default_device(), vllm_config.model_config.dtype)
    )


def _check_points(name: str, switch: Switch, top: int) -> None:
    beyond = [layer for layer in switch.gate.layers if layer > top]
    if beyond:
        raise ModelError(f"bundle {name!r} reads layer {beyond[0]}, but the model has {top}")
