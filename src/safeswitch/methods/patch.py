"""SafePatching's mask-and-merge (arXiv 2405.13820, section 3) where it needs no harmful data, and
weight merging.

- ``patch``: a sparse refusal head. The refusal head's difference to the base head is kept only
  where ``|W * dL/dW|`` is among the highest for refusals of unsafe requests (A) and not among the
  highest for the model's own replies to safe ones (B); both fractions are chosen on validation.
  ``dL/dW = (softmax - onehot)^T H / m``, ``[V, d]``.
- ``patch_weights``: differences d1, d2 of any parameters that the user supplies (``source``: a
  safetensors file, named as the model names them; ``source_other``: a second patch, against
  over-refusal), merged as ``alpha d1|(A - B) + beta d2|(B - A)`` and applied while the model
  replies. A and B are the top entries of ``|(W + d) * dL/dW|`` for d1 and d2, L being the loss on
  refusals of unsafe requests, its gradient that of the unpatched model.
- ``merge``: a user's difference to a safety-tuned model, added in the fraction that does best on
  validation (arXiv 2410.07571, section 5).

Shares as remembered from the paper: A 3 %, B 2 %, retention 30 %. Weakness: importance at one point
says little about large changes; the paper's second patch is a fine-tune towards compliance, which
is not shipped here. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from safeswitch.core.artifact import read_tensors
from safeswitch.core.deprecated import renamed
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Example
from safeswitch.fitting.head_data import ReplyStates, reply_ids, reply_states
from safeswitch.fitting.observe import refusal_pairs
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import best, fitted_switch
from safeswitch.methods.masks import check_alike, importance, merged, patched, retained, top_mask
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.actuators.heads import SparseHead
from safeswitch.switch.actuators.weights import Weights
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate

_HEAD = "lm_head"


@METHODS.add("patch")
@renamed("shares", "fractions")
@dataclass(frozen=True)
class SparsePatch(Method):
    """The refusal head in few places.

    Args:
        fractions: Fractions of the head's entries in A that are tried.
        spared: Fractions of entries in B that are tried: what safe replies need can be the very
            entries that refusals need.
        keep: Probability with which an entry is kept at all.
        requests: Most requests of each kind that importance comes from.
    """

    fractions: tuple[float, ...] = (0.03, 0.1, 0.3)
    spared: tuple[float, ...] = (0.02, 0.0)
    keep: float = 1.0
    requests: int = 64
    name: ClassVar[str] = "patch"
    tags: ClassVar[Tags] = Tags(engines=("transformers", "vllm"), trains=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The sparse head at the best fractions."""
        lm = engine.lm
        head = fitted_switch(engine, data, self.settings, self.complied).actuator
        weight, _ = head_weight(lm)
        difference = {_HEAD: head_difference(head, weight)}
        refused, answered = self._replies(engine, data)
        a, b = (
            importance({_HEAD: weight}, {_HEAD: head_gradient(lm, states)})
            for states in (refused, answered)
        )
        kept = retained(difference, self.keep, self.settings.seed)
        tried = [
            SparseHead.of(patched(kept, top_mask(a, fraction), None, top_mask(b, spared))[_HEAD])
            for spared in self.spared
            for fraction in self.fractions
        ]
        return best(engine, gate, tried, data, self.complied, self.settings)

    def _replies(self, engine: ReadingEngine, data: Data) -> tuple[ReplyStates, ReplyStates]:
        """States of refusals, and of the model's own replies to safe requests."""
        tokens = self.settings.max_new_tokens
        unsafe, refusals = refusal_pairs(
            engine,
            data["train"],
            complied=self.complied,
            most=self.requests,
            max_new_tokens=tokens,
            trust=self.settings.trust_replies,
        )
        safe = [e for e in data["train"] if not e.unsafe][: self.requests]
        replies = engine.generate(safe, max_new_tokens=tokens, do_sample=False)
        own = [(e, r.token_ids) for e, r in zip(safe, replies, strict=True) if r.token_ids]
        return reply_states(engine.lm, unsafe, refusals), reply_states(
            engine.lm, [e for e, _ in own], [ids for _, ids in own]
        )


@torch.no_grad()
def head_weight(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """The base head's matrix ``[V, d]`` and bias ``[V]``, float32 on the host, read through its
    forward pass."""
    device, dtype = lm.head_device, lm.head_dtype
    bias: Tensor = (
        lm.parts.head(torch.zeros(1, lm.hidden_size, device=device, dtype=dtype))[0].float().cpu()
    )
    weight: Tensor = (
        lm.parts.head(torch.eye(lm.hidden_size, device=device, dtype=dtype)).float().cpu() - bias
    )
    return weight.T.contiguous(), bias


def head_difference(fitted: Actuator, weight: Tensor) -> Tensor:
    """A fitted head's difference to the base head's ``weight``, both ``[V, d]``."""
    head = fitted.head
    assert head is not None
    return head.difference(weight)


@torch.no_grad()
def head_gradient(lm: LanguageModel, states: ReplyStates) -> Tensor:
    """Gradient of the mean cross-entropy to the base head's matrix, ``[V, d]`` (soft caps left
    out)."""
    weight, bias = head_weight(lm)
    hidden = states.hidden * (lm.traits.head_scale or 1.0)
    error = (hidden @ weight.T + bias).softmax(-1)
    error[torch.arange(len(states)), states.targets] -= 1
    return error.T @ hidden / len(states)


@dataclass(frozen=True)
class _Supplied(Method):
    """A method for differences that the user supplies.

    Args:
        source: A safetensors file of differences, named as the model's parameters are.
    """

    source: str = ""

    def differences(self, lm: LanguageModel, source: str) -> dict[str, Tensor]:
        """The file's differences, checked against the model.

        Raises:
            SettingError: no source, or parameters that the model does not have in that shape.
            ArtifactError: a file that cannot be read.
        """
        if not source:
            raise SettingError(
                f"{self.name}: needs differences of weights; name a file as "
                f"{self.name}:differences.safetensors"
            )
        found = read_tensors(Path(source))
        own = {name: tuple(p.shape) for name, p in lm.model.named_parameters()}
        wrong = sorted(name for name, t in found.items() if own.get(name) != tuple(t.shape))
        if wrong:
            raise SettingError(f"{self.name}: {source} does not fit the model: {', '.join(wrong)}")
        return {name: t.float() for name, t in found.items()}


@METHODS.add("patch_weights")
@renamed("share", "fraction")
@dataclass(frozen=True)
class PatchWeights(_Supplied):
    """Supplied patches, masked by importance and merged where they do not meet.

    Args:
        source_other: A second file: differences against over-refusal; none by default.
        fraction: Fraction of entries in A.
        spared: Fraction of entries in B.
        keep: Probability with which an entry is kept at all.
        alpha: Multiplier of the first patch.
        beta: Multiplier of the second.
        requests: Most unsafe requests that importance comes from.
    """

    source_other: str = ""
    fraction: float = 0.03
    spared: float = 0.02
    keep: float = 0.3
    alpha: float = 1.0
    beta: float = 1.0
    requests: int = 32
    name: ClassVar[str] = "patch_weights"
    tags: ClassVar[Tags] = Tags(trains=True, difference=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The merged patch."""
        lm = engine.lm
        safety = self.differences(lm, self.source)
        other = self.differences(lm, self.source_other) if self.source_other else None
        weights = {
            n: p.detach().float().cpu() for n, p in lm.model.named_parameters() if n in safety
        }
        examples, refusals = refusal_pairs(
            engine,
            data["train"],
            complied=self.complied,
            most=self.requests,
            max_new_tokens=self.settings.max_new_tokens,
            trust=self.settings.trust_replies,
        )
        slopes = gradients(lm, list(zip(examples, refusals, strict=True)), tuple(safety))
        a = top_mask(
            importance({n: w + safety[n] for n, w in weights.items()}, slopes), self.fraction
        )
        b = {name: torch.zeros_like(mask) for name, mask in a.items()}
        if other is not None:
            check_alike(safety, other)
            b = top_mask(
                importance({n: w + other[n] for n, w in weights.items()}, slopes), self.spared
            )
        kept = retained(safety, self.keep, self.settings.seed)
        return Weights.of(patched(kept, a, other, b, self.alpha, self.beta))


def gradients(
    lm: LanguageModel, pairs: Sequence[tuple[Example, str]], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Gradient of the mean cross-entropy of replies, by parameter name; the model is left as it
    was."""
    own = dict(lm.model.named_parameters())
    wanted = [own[name] for name in names]
    before = [p.requires_grad for p in wanted]
    total = [torch.zeros_like(p, dtype=torch.float32) for p in wanted]
    prompts = lm.encode([example for example, _ in pairs])
    with lm.lock:
        try:
            for p in wanted:
                p.requires_grad_(True)
            for prompt, (_, reply) in zip(prompts, pairs, strict=True):
                tokens = reply_ids(lm, reply)
                ids = torch.tensor([[*prompt, *tokens]], device=lm.device)
                with torch.enable_grad():
                    logits = (
                        lm.model(input_ids=ids, use_cache=False)
                        .logits[0, len(prompt) - 1 : -1]
                        .float()
                    )
                    loss = torch.nn.functional.cross_entropy(
                        logits, ids[0, len(prompt) :].to(logits.device)
                    )
                    found = torch.autograd.grad(loss, wanted)
                for held, gradient in zip(total, found, strict=True):
                    held += gradient.float() / len(pairs)
        finally:
            for p, flag in zip(wanted, before, strict=True):
                p.requires_grad_(flag)
    return {name: t.cpu() for name, t in zip(names, total, strict=True)}


@METHODS.add("merge")
@renamed("shares", "fractions")
@dataclass(frozen=True)
class Merge(_Supplied):
    """A supplied difference in the best fraction.

    Args:
        fractions: Fractions that are tried.
    """

    fractions: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    name: ClassVar[str] = "merge"
    tags: ClassVar[Tags] = Tags(difference=True, trains=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The difference, added in the best fraction."""
        found: Mapping[str, Tensor] = self.differences(engine.lm, self.source)
        tried = [
            Weights.of(merged({"tuned": found}, {"tuned": fraction})) for fraction in self.fractions
        ]
        return best(engine, gate, tried, data, self.complied, self.settings)
