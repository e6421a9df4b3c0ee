"""Greedy coordinate gradient: a token-level search for a suffix, blind to the gate or looking into
it.

Letters: b candidates, s suffix tokens, V vocabulary. Knows nothing of the loss that it makes small.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from safeswitch.attacks.base import ATTACKS, Attack, Victim, attacked
from safeswitch.attacks.objective import Objective, Slot
from safeswitch.attacks.wrappers import last_turn
from safeswitch.core.errors import ModelError, SettingError
from safeswitch.core.types import Example, as_messages
from safeswitch.models.language_model import LanguageModel


@ATTACKS.add("gcg")
@dataclass(frozen=True)
class GCG(Attack):
    """A suffix that makes the wanted reply likely (Zou et al. 2023, arXiv 2307.15043, algorithm 1;
    a version of our own).

    Each step draws candidates that differ from the best suffix in one token, out of the tokens that
    the gradient favours at that place, and keeps the best of them when it is better. Candidates
    that would be tokenised otherwise once they are text are left out, so that what was searched is
    what the model will read.

    Args:
        target: Beginning of the wanted reply, a content-free affirmation.
        start: Suffix to start from; it must not melt with the request's last token.
        steps: Steps of the search.
        candidates: Suffixes drawn in a step.
        favoured: Tokens that the gradient favours at each place, out of which candidates are drawn.
        seed: Of what is drawn.
    """

    target: str = "Sure, here is"
    start: str = " x x x x x x x x x x"
    steps: int = 40
    candidates: int = 64
    favoured: int = 64
    seed: int = 0
    name: ClassVar[str] = "gcg"
    paper: ClassVar[str] = "Zou et al. 2023, arXiv 2307.15043"
    white_box: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "favoured"):
            if getattr(self, name) < 1:
                raise SettingError(
                    f"{self.name}: {name} must be 1 or more; got {getattr(self, name)}"
                )

    def attack(self, example: Example, victim: Victim) -> list[Example]:
        """The request with the suffix that the search ends with, one form; its ``meta`` tells the
        loss before and after, and the seconds."""
        began = time.perf_counter()
        slot = cut(victim.lm, example, self.start)
        target = victim.lm.tokenizer(self.target, add_special_tokens=False)["input_ids"]
        suffix, first, last = self.search(example, victim.lm, self.objective(victim, slot, target))
        meta = {
            "loss_before": f"{first:.4f}",
            "loss": f"{last:.4f}",
            "seconds": f"{time.perf_counter() - began:.2f}",
        }
        return [
            attacked(example, self, "", meta=meta, messages=with_suffix(example, suffix).messages)
        ]

    def objective(self, victim: Victim, slot: Slot, target: list[int]) -> Objective:
        """What is made small."""
        return Objective(victim, slot, target)

    def search(
        self, example: Example, lm: LanguageModel, objective: Objective
    ) -> tuple[str, float, float]:
        """The best suffix found, and the loss before and after."""
        draw = torch.Generator().manual_seed(self.seed)
        banned = banned_tokens(lm)
        best = torch.tensor(objective.slot.suffix, device=lm.device)
        text = self.start
        first = last = float(objective.losses(best[None], [text])[0])
        for _ in range(self.steps):
            slope = objective.gradient(best).masked_fill(banned.to(lm.device), torch.inf)
            pool = self._drawn(
                best, (-slope).topk(min(self.favoured, slope.shape[1])).indices, draw
            )
            kept = [
                (row, words)
                for row in pool
                if (words := as_text(lm, example, objective.slot, row)) is not None
            ]
            if not kept:
                continue
            losses = objective.losses(
                torch.stack([row for row, _ in kept]), [words for _, words in kept]
            )
            winner = int(losses.argmin())
            if float(losses[winner]) < last:
                (best, text), last = kept[winner], float(losses[winner])
        return text, first, last

    def _drawn(self, best: Tensor, favoured: Tensor, draw: torch.Generator) -> list[Tensor]:
        """Different candidates ``[s]``, each with one token replaced by one of those ``favoured``
        ``[s, k]`` there."""
        s, k = favoured.shape
        places = torch.randint(s, (self.candidates,), generator=draw)
        ranks = torch.randint(k, (self.candidates,), generator=draw)
        pool = best.repeat(self.candidates, 1)
        pool[torch.arange(self.candidates), places] = favoured[places, ranks]
        return list(pool.unique(dim=0))


@ATTACKS.add("gcg-prober")
@dataclass(frozen=True)
class ProberAwareGCG(GCG):
    """The same search with the gate's probers in the loss (obfuscated activations, Bailey et al.
    2024, arXiv 2412.09565).

    Args:
        weight: Weight of the probers' part of the loss, see :class:`Objective`.
        margin: By how much each stage is to stay below its threshold, in log-odds.
    """

    weight: float = 1.0
    margin: float = 1.0
    name: ClassVar[str] = "gcg-prober"
    paper: ClassVar[str] = "Bailey et al. 2024, arXiv 2412.09565"

    def objective(self, victim: Victim, slot: Slot, target: list[int]) -> Objective:
        if victim.gate is None or not victim.gate.layers:
            raise SettingError(
                "gcg-prober: needs a switch whose gate reads states; there is nothing to evade"
            )
        return Objective(victim, slot, target, weight=self.weight, margin=self.margin)


def with_suffix(example: Example, suffix: str) -> Example:
    """``example`` with ``suffix`` behind the words of its last turn."""
    return replace(example, messages=last_turn(example.messages, example.prompt + suffix))


def cut(lm: LanguageModel, example: Example, suffix: str) -> Slot:
    """Where the tokens of ``suffix`` stand in the templated request.

    Raises:
        ModelError: they cannot be told from those of the request, or the template moves them.
    """
    bare, whole = lm.encode([example, with_suffix(example, suffix)])
    shared = next(
        (i for i, (a, b) in enumerate(zip(bare, whole, strict=False)) if a != b), len(bare)
    )
    after = bare[shared:]
    if len(whole) <= len(bare) or whole[len(whole) - len(after) :] != after:
        raise ModelError(
            f"gcg: the suffix {suffix!r} melts with the request {example.id!r}; start from another "
            "one"
        )
    text = "\n".join(message.content for message in as_messages(example))
    return Slot(
        tuple(whole[:shared]), tuple(whole[shared : len(whole) - len(after)]), tuple(after), text
    )


def as_text(lm: LanguageModel, example: Example, slot: Slot, suffix: Tensor) -> str | None:
    """The words of ``suffix`` ``[s]``, or None where the tokenizer would read them as other
    tokens."""
    ids = suffix.tolist()
    last = list(slot.before[-1:])
    text = str(lm.tokenizer.decode([*last, *ids]))[len(str(lm.tokenizer.decode(last))) :]
    if not text.isprintable():
        return None
    return (
        text
        if lm.encode([with_suffix(example, text)], check=False)[0]
        == [*slot.before, *ids, *slot.after]
        else None
    )


def banned_tokens(lm: LanguageModel) -> Tensor:
    """``[V]`` bool: special tokens, and entries of the head that the tokenizer does not have."""
    banned = torch.zeros(lm.vocab_size, dtype=torch.bool)
    banned[len(lm.tokenizer) :] = True
    banned[[i for i in lm.tokenizer.all_special_ids if i < lm.vocab_size]] = True
    return banned
