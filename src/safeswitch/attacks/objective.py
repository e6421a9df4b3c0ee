"""What a white-box search makes small: the target's negative log-likelihood and, where asked, what
the gate's probers say.

Letters: b candidates, s suffix tokens, t target tokens, d hidden size, V vocabulary. All candidates
have the same length, so nothing is padded. Knows nothing of how candidates are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from safeswitch.activations.reader import Reader
from safeswitch.activations.record import mean_over
from safeswitch.activations.states import Activations
from safeswitch.attacks.base import Victim
from safeswitch.core.types import SPANS, ReadPoint, Site
from safeswitch.probers.base import Prober
from safeswitch.probers.ensemble import EnsembleProber
from safeswitch.probers.fusion import FusionProber
from safeswitch.probers.multilayer import LayerAverageProber
from safeswitch.switch.gate import Stage

SATURATED = 1e-7
"""How near to 0 and 1 a single reader's score still has a gradient: float32 rounds beyond it."""


def prober_log_odds(prober: Prober, activations: Activations) -> Tensor:
    """Log-odds ``[b]`` of a prober's score, with a gradient in the states.

    Probers that average others clip each score before its log-odds are taken, and a clipped score
    has no gradient: their inner probers are averaged here without that, and an ensemble's quantile
    is taken of its members' log-odds, so that a saturated reading hides nothing from the search
    (gradient masking, Athalye et al. 2018, arXiv 1802.00420).
    """
    if isinstance(prober, LayerAverageProber):
        return torch.stack([prober_log_odds(p, activations) for p in prober.fitted()]).mean(0)
    if isinstance(prober, EnsembleProber):
        return prober.member_odds(activations).double().quantile(prober.quantile, dim=0)
    if isinstance(prober, FusionProber):
        odds = torch.stack([prober_log_odds(p, activations) for p in prober.readers], 1)
        return odds @ prober.weights_.to(odds) + prober.bias_.to(odds)
    score = prober.score(activations).double().clamp(SATURATED, 1 - SATURATED)
    return torch.log(score) - torch.log1p(-score)


@dataclass(frozen=True, eq=False)
class Slot:
    """A templated request cut around its suffix.

    Args:
        before: Token ids in front of the suffix.
        suffix: The suffix's first tokens, ``s`` of them.
        after: Token ids between the suffix and the reply.
        text: The conversation's plain text in front of the suffix, for readers of text.
    """

    before: tuple[int, ...]
    suffix: tuple[int, ...]
    after: tuple[int, ...]
    text: str

    @property
    def prompt_length(self) -> int:
        """Tokens in front of the reply."""
        return len(self.before) + len(self.suffix) + len(self.after)


class Objective:
    """Loss of suffix candidates: ``NLL(target) + weight * sum over stages max(0, log-odds - bar +
    margin)``.

    The sum is over the stages of the gate that a reply as long as the target reaches, each with the
    log-odds of its own threshold as ``bar``; a stage that stays silent by ``margin`` adds nothing
    more. The watch counts with its loudest reading. With ``weight`` 0 this is the objective of GCG
    (Zou et al. 2023, arXiv 2307.15043), else that of obfuscated activations (Bailey et al. 2024,
    arXiv 2412.09565, section 3) for inputs.

    Args:
        victim: Model and gate.
        slot: The request.
        target: Token ids of the wanted reply's beginning.
        weight: Weight of the probers.
        margin: By how much each stage is to stay below its threshold, in log-odds.
    """

    def __init__(
        self,
        victim: Victim,
        slot: Slot,
        target: Sequence[int],
        *,
        weight: float = 0.0,
        margin: float = 1.0,
    ) -> None:
        self.victim, self.slot, self.weight, self.margin = victim, slot, weight, margin
        lm = victim.lm
        self._target = torch.tensor(list(target), device=lm.device)
        embed = lm.model.get_input_embeddings()
        with torch.no_grad():
            self.table = embed(torch.arange(lm.vocab_size, device=lm.device))
        self._parts = [
            self.table[torch.tensor(part, device=lm.device, dtype=torch.long)]
            for part in (slot.before, slot.after)
        ]

    def gradient(self, suffix: Tensor) -> Tensor:
        """Gradient of the loss with respect to the one-hot rows of ``suffix`` ``[s]``: ``[s,
        V]``."""
        chosen = self.table[suffix].detach().requires_grad_()
        loss = self._losses(chosen[None], [""]).sum()
        (slope,) = torch.autograd.grad(loss, chosen)
        found: Tensor = slope @ self.table.T
        return found

    @torch.no_grad()
    def losses(self, suffixes: Tensor, texts: Sequence[str]) -> Tensor:
        """Loss ``[b]`` of candidates ``[b, s]`` with their plain ``texts``."""
        return self._losses(self.table[suffixes], texts)

    def _losses(self, chosen: Tensor, texts: Sequence[str]) -> Tensor:
        """Loss ``[b]`` of suffix embeddings ``[b, s, d]``."""
        before, after = (part.expand(len(chosen), -1, -1) for part in self._parts)
        target = self.table[self._target].expand(len(chosen), -1, -1)
        embeds, t = torch.cat([before, chosen, after, target], 1), len(self._target)
        lm, stages = self.victim.lm, self._stages() if self.weight else {}
        sites = {point.site for stage, _, _ in stages.values() for point in stage.prober.points}
        with lm.lock, Reader(lm, sites, keep=lambda hidden: hidden) as reader:
            logits = (
                lm.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=t + 1)
                .logits[:, :-1]
                .float()
            )
        wanted = self._target.expand(len(chosen), -1)
        loss = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)
        plain = tuple(self.slot.text + text for text in texts)
        for stage, bar, fed in stages.values():
            odds = torch.stack(
                [
                    prober_log_odds(stage.prober, self._activations(stage, f, reader.states, plain))
                    for f in fed
                ]
            ).amax(0)
            loss = loss + self.weight * torch.relu(odds - bar + self.margin)
        return loss

    def _stages(self) -> dict[str, tuple[Stage, float, list[int]]]:
        """Stage, log-odds of its threshold, and the reply tokens fed when it is read; stages that
        are not reached left out."""
        gate, t = self.victim.gate, len(self._target)
        if gate is None:
            return {}
        found: dict[str, tuple[Stage, float, list[int]]] = {}
        bars, until = gate.thresholds(), gate.watch_until or t
        fed = {
            "stage1": [0],
            "stage2": [gate.pilot] if gate.pilot <= t else [],
            "watch": list(range(gate.watch_every, min(t, until) + 1, gate.watch_every)),
        }
        for name, stage in (
            ("stage1", gate.stage1),
            ("stage2", gate.stage2),
            ("watch", gate.watch),
        ):
            if stage is not None and fed[name]:
                bar = torch.logit(
                    torch.tensor(bars.get(name, gate.product_threshold), dtype=torch.float64),
                    eps=SATURATED,
                )
                found[name] = stage, float(bar), fed[name]
        return found

    def _activations(
        self, stage: Stage, fed: int, states: dict[Site, Tensor], texts: tuple[str, ...]
    ) -> Activations:
        """What ``stage`` would be given after ``fed`` reply tokens, from all tokens' states ``[b,
        all, d]``."""
        end = self.slot.prompt_length
        read: dict[ReadPoint, Tensor] = {}
        masks: dict[ReadPoint, Tensor] = {}
        for point in stage.prober.points:
            hidden, position = states[point.site], point.position
            if position.kind in SPANS:
                window = hidden[:, max(0, end - position.index) if position.index else 0 : end]
                there = torch.ones(window.shape[:2], dtype=torch.bool, device=hidden.device)
                if position.kind == "mean":
                    read[point] = mean_over(window, there)
                else:
                    read[point], masks[point] = window, there
            else:
                after = fed if stage is self.victim.gate.watch else position.index  # type: ignore[union-attr]
                read[point] = hidden[:, end - 1 + after]
        return Activations(read, masks, texts)
