"""``reroute``: representation rerouting, the circuit breaker (arXiv 2406.04313, section 3), as a
LoRA.

A low-rank adapter is trained (with PEFT: ``pip install "safeswitch[methods]"``) so that states of
harmful replies lose their direction while all others stay: with h the model's states at the chosen
layers and h' the adapted model's,

    loss = c_s * mean ReLU(cos(h, h')) on harmful replies + c_r * mean |h - h'|_2 / |h|_2 on
    retained ones, c_s = alpha * (1 - t / 2T), c_r = alpha * t / 2T at step t of T.

The paper does not divide by ``|h|``. A cosine's slope falls with the norm and a distance's does
not, so that where norms are large (hundreds on the embedded model) its second term undoes the first
and nothing is learned. Harmful replies: the base model's own, to unsafe fitting requests.
Retained: its replies to safe requests, and refusals of unsafe ones. Layers at a third and two
thirds of the depth (10 and 20 of 32), alpha 10, as remembered from the paper. The adapter's factors
become an action of the switch (:class:`~safeswitch.switch.actuators.weights.Adapter`); the model is
given back as it was. Weakness: what comes out on flagged requests is broken text and no refusal;
multi-turn and embedding attacks break it; always on. Knows nothing of engines.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from safeswitch.activations.reader import Reader
from safeswitch.core.errors import FitError, SafeSwitchError
from safeswitch.core.types import Example
from safeswitch.fitting.head_data import reply_ids
from safeswitch.fitting.observe import refusal_pairs
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.models.batching import mixes
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.actuators.weights import Adapter
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt and of a reply."""
_START = 0.02


@METHODS.add("reroute")
@dataclass(frozen=True)
class Reroute(Method):
    """A rerouting adapter on every request.

    Args:
        rank: Of the adapter.
        steps: Training steps T.
        batch: Harmful and retained replies a step, each.
        learning_rate: Adam's.
        alpha: Weight of both losses.
        requests: Most replies of each kind.
    """

    rank: int = 8
    steps: int = 150
    batch: int = 8
    learning_rate: float = 2e-3
    alpha: float = 10.0
    requests: int = 200
    name: ClassVar[str] = "reroute"
    tags: ClassVar[Tags] = Tags(trains=True, per_row=True)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The trained adapter.

        Raises:
            SafeSwitchError: PEFT is not installed.
            FitError: the base model complies with no unsafe request.
        """
        if importlib.util.find_spec("peft") is None:
            raise SafeSwitchError('rerouting needs PEFT: pip install "safeswitch[methods]"')
        harmful, retained = self._replies(engine, data)
        lm = engine.lm
        layers = tuple(
            dict.fromkeys(max(1, round(fraction * lm.num_layers)) for fraction in (1 / 3, 2 / 3))
        )
        with lm.lock, adapted(lm, self.rank, self.settings.seed) as model, torch.enable_grad():
            self._train(lm, model, harmful, retained, layers)
            return Adapter(factors(lm, model))

    def _replies(self, engine: ReadingEngine, data: Data) -> tuple[list[Pair], list[Pair]]:
        lm, tokens = engine.lm, self.settings.max_new_tokens
        asked: dict[bool, list[Example]] = {}
        for unsafe in (True, False):
            rows = [e for e in data["train"] if e.unsafe == unsafe]
            asked[unsafe] = rows[: self.requests]
        replies = {
            u: engine.generate(rows, max_new_tokens=tokens, do_sample=False)
            for u, rows in asked.items()
        }
        wrong = [
            (e, r.token_ids)
            for e, r in zip(asked[True], replies[True], strict=True)
            if self.complied(e, r.text)
        ]
        if not wrong:
            raise FitError(
                "reroute: the base model complies with no unsafe training request; there is "
                "nothing to reroute"
            )
        examples, refusals = refusal_pairs(
            engine,
            data["train"],
            complied=self.complied,
            most=self.requests,
            max_new_tokens=tokens,
            trust=self.settings.trust_replies,
        )
        kept = [
            (e, r.token_ids)
            for e, r in zip(asked[False], replies[False], strict=True)
            if r.token_ids
        ]
        kept += [
            (e, tuple(reply_ids(lm, text))) for e, text in zip(examples, refusals, strict=True)
        ]
        return _encoded(lm, wrong), _encoded(lm, kept)

    def _train(
        self,
        lm: LanguageModel,
        model: Any,
        harmful: list[Pair],
        retained: list[Pair],
        layers: tuple[int, ...],
    ) -> None:
        draw = torch.Generator().manual_seed(self.settings.seed)
        start_off(model, draw)
        optimiser = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad], lr=self.learning_rate
        )
        for step in range(self.steps):
            progress = step / (2 * self.steps)
            loss = torch.zeros(())
            for pairs, weight, measure in (
                (harmful, 1 - progress, _likeness),
                (retained, progress, _distance),
            ):
                rows = [
                    pairs[int(i)] for i in torch.randint(len(pairs), (self.batch,), generator=draw)
                ]
                together = mixes(max(len(p) + len(r) for p, r in rows), lm.traits)
                for batch in [rows] if together else [[row] for row in rows]:
                    with torch.no_grad(), model.disable_adapter():
                        before = _states(lm, batch, layers)
                    after = _states(lm, batch, layers)
                    found = measure(before, after) * len(batch) / len(rows)
                    loss = loss.to(found.device) + self.alpha * weight * found
            if not torch.isfinite(loss):
                raise FitError(
                    f"reroute: the loss is {loss.item()}; lower the learning rate "
                    f"({self.learning_rate})"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def _encoded(lm: LanguageModel, pairs: Sequence[tuple[Example, Sequence[int]]]) -> list[Pair]:
    prompts = lm.encode([example for example, _ in pairs])
    return [(prompt, list(reply)) for prompt, (_, reply) in zip(prompts, pairs, strict=True)]


def _states(lm: LanguageModel, batch: Sequence[Pair], layers: tuple[int, ...]) -> Tensor:
    """States at all reply tokens of the batch, ``[L, m, d]``."""
    ids, mask = lm.pad([[*prompt, *reply] for prompt, reply in batch])
    width = ids.shape[1]
    at = torch.zeros(ids.shape, dtype=torch.bool)
    for i, (_, reply) in enumerate(batch):
        at[i, width - len(reply) :] = True
    with Reader(lm, layers, lambda hidden: hidden[at.to(hidden.device)]) as reader:
        lm.run_backbone(ids, mask)
    return torch.stack([reader.states[layer].float() for layer in layers])


def _likeness(before: Tensor, after: Tensor) -> Tensor:
    likeness: Tensor = functional.cosine_similarity(before, after, dim=-1)
    return likeness.relu().mean()


def _distance(before: Tensor, after: Tensor) -> Tensor:
    distance: Tensor = (before - after).norm(dim=-1) / before.norm(dim=-1)
    return distance.mean()


@contextmanager
def adapted(lm: LanguageModel, rank: int, seed: int) -> Iterator[Any]:
    """The model with a fresh PEFT adapter on all linear modules of its blocks; afterwards it is as
    it was."""
    from peft import LoraConfig, get_peft_model

    flags = {name: p.requires_grad for name, p in lm.model.named_parameters()}
    modules = dict(lm.model.named_modules())
    settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=_targets(lm))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PEFT's, about its own calls and about transposed weights
            torch.manual_seed(seed)
            yield get_peft_model(lm.model, settings)
    finally:
        for name, module in modules.items():
            if name and lm.model.get_submodule(name) is not module:
                lm.model.set_submodule(name, module)
        for name, p in lm.model.named_parameters():
            p.requires_grad_(flags[name])
            p.grad = None
        lm.model.eval()


@torch.no_grad()
def start_off(model: Any, draw: torch.Generator) -> None:
    """Move a fresh adapter off nought, where the cosine is 1 and has no slope (in the paper,
    dropout does)."""
    for module in model.modules():
        if hasattr(module, "lora_B") and "default" in module.lora_B:
            weight = module.lora_B["default"].weight
            weight.copy_(_START * torch.randn(weight.shape, generator=draw))


def _targets(lm: LanguageModel) -> list[str]:
    """Names of the blocks' linear modules; not a state-space layer's last, whose weight it reads
    past any adapter."""
    found: set[str] = set()
    for block in lm.parts.blocks:
        recurrent = any(name.endswith("A_log") for name, _ in block.named_parameters())
        for name, module in block.named_modules():
            leaf = name.rpartition(".")[2]
            if isinstance(module, nn.Linear | Conv1D) and not (recurrent and leaf == "out_proj"):
                found.add(leaf)
    return sorted(found)


def factors(lm: LanguageModel, model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The adapter's ``down`` ``[r, d_in]`` and scaled ``up`` ``[d_out, r]`` by the model's own
    module names."""
    found = {}
    for name, module in lm.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            scaled = float(module.scaling["default"]) * up
            found[name] = (
                down.detach().float().cpu().clone(),
                scaled.detach().float().cpu().clone(),
            )
    return found
