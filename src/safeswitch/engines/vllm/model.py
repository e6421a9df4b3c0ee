"""vLLM's own model classes with their hidden states let out: ``module.LlamaForCausalLM`` is made
when it is asked for.

Named in ``--model-class-overrides`` (vLLM 0.32: ``config/model.py``), so nothing is registered for
engines that do not ask. The forward pass hands the states of the wanted layers on beside the final
ones, and means over the last tokens where a bundle reads them
(:mod:`safeswitch.engines.vllm.means`), in one wide tensor ``[tokens, d * (1 + L)]``; the model runner
picks the rows to be sampled out of it without knowing, and ``compute_logits`` cuts it again. So
every state belongs to its row by construction, in eager mode and in captured graphs, on both model
runners, and no index is guessed.

Middle layers come from the mechanism that EAGLE-3 uses (``model_executor/models/interfaces.py:
EagleModelMixin``): the sum of stream and residual after block i is ``hidden_states[i]`` of
transformers. What attention and MLP add comes the same way
(:mod:`safeswitch.engines.vllm.outputs`).
"""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor as LogitsLayer
from vllm.model_executor.models.interfaces import EagleModelMixin, supports_eagle3
from vllm.model_executor.models.registry import ModelRegistry, _LazyRegisteredModel

from safeswitch.core.errors import ModelError
from safeswitch.core.types import Output, ReadPoint, Site
from safeswitch.engines.settings import GuardSettings, switched_off
from safeswitch.engines.vllm.guard import Guard
from safeswitch.engines.vllm.live import keep
from safeswitch.engines.vllm.load import (
    load_tenants,
    refuse_cut_prompts,
    refuse_unless_supported,
)
from safeswitch.engines.vllm.means import means_of_last
from safeswitch.engines.vllm.outputs import let_out, plan_taps
from safeswitch.engines.vllm.recorder import StateRecorder
from safeswitch.engines.vllm.settings import stop_token
from safeswitch.switch.actuators.base import HeadActuator

if TYPE_CHECKING:
    from vllm.config import VllmConfig


_LAST = 'FitSettings(readers=("layers",), layers=(-1,))'


class GuardedModel(nn.Module):
    """Mixed in before a model class of vLLM."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        settings = GuardSettings.parse(vllm_config.additional_config)
        refuse_unless_supported(vllm_config, settings)
        self.safeswitch_sites: tuple[Site, ...] = ()
        self.safeswitch_means: tuple[tuple[Site, int], ...] = ()
        self.safeswitch_let: tuple[Site, ...] = ()
        self.safeswitch_sampled: Tensor | None = None
        if settings is None or switched_off():
            return
        text_config = vllm_config.model_config.hf_text_config
        self.safeswitch_top = int(text_config.num_hidden_layers)
        self.safeswitch_width = int(text_config.hidden_size)
        self.safeswitch_stop_token = stop_token(settings, text_config)
        tenants = load_tenants(vllm_config, settings)
        self.safeswitch_guard = Guard(tenants, self.safeswitch_top)
        self.safeswitch_recorder = StateRecorder(
            [ReadPoint.parse(point) for point in settings.record]
        )
        points = [*self.safeswitch_recorder.points]
        for tenant in tenants.values():
            points += tenant.gate.points
        means = [point for point in points if point.position.kind == "mean"]
        self.safeswitch_means = tuple(dict.fromkeys((p.site, p.position.index) for p in means))
        if means:
            refuse_cut_prompts(vllm_config)
        ends = {point.site for point in points if point not in means} - {self.safeswitch_top}
        inner = ends | {site for site, _ in self.safeswitch_means} - {self.safeswitch_top}
        if inner:
            self._let_out(inner, ends, vllm_config)
        keep(vllm_config, self)

    def _let_out(self, sites: set[Site], ends: set[Site], vllm_config: VllmConfig) -> None:
        """Have the states at ``sites`` let out; those at ``ends`` are handed on token by token."""
        if not supports_eagle3(self):
            raise ModelError(
                f"vLLM's {type(self).__name__} does not let out the states of middle layers, and "
                f"the bundle reads {', '.join(sorted(map(str, sites)))}; serve it with --engine "
                f"transformers, or fit one with {_LAST}"
            )
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ModelError(
                f"with pipeline parallelism only layer -1 can be read; fit the bundle with {_LAST}"
            )
        own: Any = self
        taps = plan_taps(sites)
        own.set_aux_hidden_state_layers(tuple(sorted(taps)))
        holder: Any = next(
            module for module in self.modules() if isinstance(module, EagleModelMixin)
        )
        if any(isinstance(site, Output) for site in sites):
            let_out(holder, taps)
        let = [tap.site for number in sorted(taps) for tap in taps[number]]
        self.safeswitch_sites = tuple(site for site in let if site in ends)
        self.safeswitch_let = tuple(let)
        # vLLM keeps compiled models by a hash of their configuration, which knows a bundle by its
        # path alone.
        config = getattr(holder, "vllm_config", vllm_config)
        config.additional_config["safeswitch_sites"] = [str(site) for site in let]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own states ``[tokens, d]``; where more is read, with that beside it, as
        :meth:`safeswitch_take` says."""
        out = super().forward(*args, **kwargs)
        if isinstance(out, tuple):
            hidden, let = out
        elif self.safeswitch_means and isinstance(out, Tensor):
            hidden, let = out, []
        else:
            return out
        states = dict(zip(self.safeswitch_let, let, strict=True))
        parts = [states[site] for site in self.safeswitch_sites]
        if self.safeswitch_means:
            positions = kwargs["positions"] if "positions" in kwargs else args[1]
            states[self.safeswitch_top] = hidden
            for site, tokens in self.safeswitch_means:
                parts.append(means_of_last(states[site], positions, tokens))
        return torch.cat([hidden, *parts], dim=-1) if parts else hidden

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        self.safeswitch_sampled = hidden_states
        wide = self.safeswitch_sites or self.safeswitch_means
        if wide and hidden_states.shape[-1] != self.safeswitch_width:
            hidden_states = hidden_states[:, : self.safeswitch_width].contiguous()
        logits: Tensor | None = super().compute_logits(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return logits

    @property
    def compute_logits_local(self) -> Any:
        raise AttributeError(
            "guarded models sample whole rows"
        )  # vLLM then falls back to compute_logits

    def safeswitch_take(self, rows: int) -> Tensor:
        """States ``[rows, d + L * d]`` of the rows that are being sampled, the top site's first, then
        those of inner sites, then means over tokens, L in all; once for each forward pass.

        Raises:
            ModelError: there are none, or not that many: nothing may be decided on states of other
                rows.
        """
        taken, self.safeswitch_sampled = self.safeswitch_sampled, None
        if taken is None or taken.shape[0] != rows:
            have = "none" if taken is None else str(taken.shape[0])
            raise ModelError(
                f"SafeSwitch: {rows} rows are to be sampled, but the states of {have} are there"
            )
        return taken

    def safeswitch_read(self, sampled: Tensor, point: ReadPoint) -> Tensor:
        """States ``[rows, d]`` at ``point`` out of :meth:`safeswitch_take`."""
        site = point.site
        if point.position.kind == "mean":
            at = self.safeswitch_means.index((site, point.position.index))
            at += 1 + len(self.safeswitch_sites)
        else:
            at = 0 if site == self.safeswitch_top else 1 + self.safeswitch_sites.index(site)
        return sampled[:, at * self.safeswitch_width : (at + 1) * self.safeswitch_width]

    def safeswitch_difference(self, head: HeadActuator, hidden: Tensor) -> Tensor:
        """Refusal head's logits minus the base head's ``[rows, V]``, after the model's own scaling
        and soft cap."""
        layer = next(module for module in self.modules() if isinstance(module, LogitsLayer))
        added = head.addition(hidden) if layer.soft_cap is None else None
        if added is not None:
            scaled: Tensor = layer.scale * added
            return scaled
        cap, scale = layer.soft_cap, layer.scale
        layer.soft_cap, layer.scale = None, 1.0
        try:
            raw = super().compute_logits(hidden.contiguous())  # type: ignore[misc]
        finally:
            layer.soft_cap, layer.scale = cap, scale
        finish = partial(_finish, cap=cap, scale=scale)
        difference: Tensor = finish(head.apply(raw, hidden)) - finish(raw)
        return difference


def _finish(raw: Tensor, cap: float | None, scale: float) -> Tensor:
    return scale * (raw if cap is None else cap * torch.tanh(raw / cap))


def _guarded(architecture: str) -> type[nn.Module]:
    """The model class of vLLM for ``architecture``, with our mixin in front."""
    found = ModelRegistry.models.get(architecture)
    own = found is None or (
        isinstance(found, _LazyRegisteredModel) and found.module_name == __name__
    )
    base: Any = _from_vllm(architecture) if own else found.load_model_cls()
    return types.new_class(
        architecture, (GuardedModel, base), {}, lambda names: names.update({"__module__": __name__})
    )


def _from_vllm(architecture: str) -> Any:
    """vLLM's own class where the registry already holds ours under its name."""
    from vllm.model_executor.models.registry import _VLLM_MODELS

    if architecture not in _VLLM_MODELS:
        raise AttributeError(f"vLLM has no architecture {architecture!r}")
    module, name = _VLLM_MODELS[architecture]
    return _LazyRegisteredModel(
        module_name=module
        if module.startswith("vllm.")
        else f"vllm.model_executor.models.{module}",
        class_name=name,
    ).load_model_cls()


class _Module(types.ModuleType):
    """This module, with a guarded class for every architecture that vLLM knows."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name[0].isupper():
            raise AttributeError(name)
        made = _guarded(name)
        setattr(self, name, made)
        return made


sys.modules[__name__].__class__ = _Module
