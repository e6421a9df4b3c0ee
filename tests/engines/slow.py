"""The slow way: one row, no cache, no batch, every token from a full forward pass. What the engine
must equal.

Also a prober whose score is a fixed function of the state, so that a test knows by hand which rows
fire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import Prober
from safeswitch.switch.actuators.base import LowRankHead

EOS = 2


class Projection(Prober):
    """Scores ``sigmoid(direction . state)`` at one point; nothing is learned."""

    kind = "test-projection"

    def __init__(self, point: ReadPoint, width: int, seed: int = 0) -> None:
        self.points = (point,)
        self.direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))

    def fit(
        self, activations: Activations, labels: Tensor, *, validation: Any = None, seed: int = 0
    ) -> Self:
        return self

    def score(self, activations: Activations) -> Tensor:
        states = activations.at(self.points[0])
        if states.ndim == 3:
            states = states.sum(1)
        return torch.sigmoid(states.float() @ self.direction)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        raise NotImplementedError

    @classmethod
    def from_state(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        raise NotImplementedError


def random_head(lm: LanguageModel, rank: int = 2, scale: float = 1.0, seed: int = 5) -> LowRankHead:
    """A low-rank difference big enough to change the greedy reply."""
    draw = torch.Generator().manual_seed(seed)
    down = scale * torch.randn(rank, lm.hidden_size, generator=draw)
    return LowRankHead(down, torch.randn(lm.vocab_size, rank, generator=draw))


@torch.no_grad()
def states_alone(lm: LanguageModel, ids: Sequence[int]) -> tuple[Tensor, ...]:
    """``output_hidden_states`` of one row, each ``[t, d]``; the last is after the final norm."""
    output = lm.parts.backbone(
        input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False
    )
    return (*(h[0] for h in output.hidden_states[:-1]), output.last_hidden_state[0])


@torch.no_grad()
def reply_alone(
    lm: LanguageModel, prompt: Sequence[int], tokens: int, head: LowRankHead | None = None
) -> list[int]:
    """Greedy reply token by token, each from a full forward pass; with ``head``, its difference is
    added by hand."""
    ids, reply = list(prompt), []
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    for _ in range(tokens):
        hidden = states_alone(lm, ids)[-1][-1]
        logits = lm.parts.head(hidden)
        if head is not None:
            logits = logits + head.up @ (head.down @ hidden)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        token = int(logits.argmax())
        ids.append(token)
        reply.append(token)
        if token == EOS:
            break
    return reply


def pilot_point(lm: LanguageModel, k: int, layer: int = -1) -> ReadPoint:
    return ReadPoint(lm.layer(layer), Position("pilot", k))


def prompt_point(lm: LanguageModel, layer: int = -1) -> ReadPoint:
    return ReadPoint(lm.layer(layer), PROMPT_END)
