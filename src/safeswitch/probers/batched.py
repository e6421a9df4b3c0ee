"""Trains many small MLPs at once, one per read point; one MLP is the case of one point.

The probers never meet: parameters, data and losses carry a leading dimension P and only elementwise
and batched operations touch it, so each comes out as if trained alone (same first weights, same
batch order, same dropout).
Shapes: P probers, n rows, b rows of a batch, d hidden size, h hidden units, o outputs. Knows
    nothing of read points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from safeswitch.core.errors import FitError
from safeswitch.probers.recipes import Recipe
from safeswitch.probers.split import balanced_weights


class MLPWeights(NamedTuple):
    """``w1 [P, d, h]``, ``b1 [P, 1, h]``, ``w2 [P, h, o]``, ``b2 [P, 1, o]``."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def take(self, rows: Tensor) -> MLPWeights:
        return MLPWeights(*(t.detach()[rows] for t in self))


def first_weights(p: int, d: int, h: int, o: int, generator: torch.Generator) -> MLPWeights:
    """``torch.nn.Linear``'s default start, drawn once on CPU and given to all ``p`` probers."""
    drawn = []
    for fan_in, shape in ((d, (1, d, h)), (d, (1, 1, h)), (h, (1, h, o)), (h, (1, 1, o))):
        drawn.append((torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5)
    return MLPWeights(*(t.repeat(p, 1, 1) for t in drawn))


def forward(x: Tensor, weights: MLPWeights, keep: Tensor | None = None) -> Tensor:
    """Outputs ``[P, b, o]`` for ``x`` ``[P, b, d]``; ``keep`` ``[b, h]`` scales hidden units
    (dropout)."""
    hidden = torch.relu(torch.baddbmm(weights.b1, x, weights.w1))
    if keep is not None:
        hidden = hidden * keep
    return torch.baddbmm(weights.b2, hidden, weights.w2)


def probability(outputs: Tensor) -> Tensor:
    """Score ``[..., ]`` from outputs ``[..., o]``: softmax of two, sigmoid of one."""
    return torch.sigmoid(
        outputs[..., 1] - outputs[..., 0] if outputs.shape[-1] == 2 else outputs[..., 0]
    )


def losses(outputs: Tensor, labels: Tensor, row_weights: Tensor) -> Tensor:
    """Mean weighted loss ``[P]`` for outputs ``[P, b, o]``, labels ``[b]`` float, row weights
    ``[b]``."""
    if outputs.shape[-1] == 2:
        # cross-entropy on (p0, p1) is softplus(p_other - p_true), and p1 - p0 = tanh((z1 - z0) / 2)
        signed = torch.tanh((outputs[..., 1] - outputs[..., 0]) / 2) * (2 * labels - 1)
        return (F.softplus(-signed) * row_weights).mean(1)
    logits = outputs[..., 0]
    return ((F.softplus(logits) - labels * logits) * row_weights).mean(1)


def gradients(
    x: Tensor, labels: Tensor, row_weights: Tensor, weights: MLPWeights, keep: Tensor | None
) -> None:
    """Write the gradient of ``losses(forward(x, weights, keep), labels, row_weights).sum()`` into
    each ``grad``.

    Shapes are those of :func:`forward` and :func:`losses`: ``x`` ``[P, b, d]``, ``labels`` and
    ``row_weights`` ``[b]`` float, ``keep`` ``[b, h]``. By hand rather than by
    autograd: the gradients land in buffers made once, which on CPU is a third of the step.
    """
    hidden = torch.relu_(torch.baddbmm(weights.b1, x, weights.w1))
    if keep is not None:
        hidden *= keep
    w1, b1, w2, b2 = (t.grad for t in weights)
    row = weights.w2.transpose(1, 2)
    if row.shape[1] == 2:
        delta = _output_slope(torch.baddbmm(weights.b2, hidden, weights.w2), labels, row_weights)
        back = torch.bmm(delta, row)
        torch.bmm(hidden.transpose(1, 2), delta, out=w2)
    else:  # products with one column: broadcasting is faster than many tiny matrix products
        delta = _output_slope((hidden * row).sum(2, keepdim=True) + weights.b2, labels, row_weights)
        back = delta * row
        torch.sum((hidden * delta).transpose(1, 2), 2, keepdim=True, out=w2)
    if keep is not None:
        back *= keep
    back *= hidden.sign()  # what ReLU or dropout silenced passes nothing back
    torch.bmm(x.transpose(1, 2), back, out=w1)
    torch.sum(back, 1, keepdim=True, out=b1)
    torch.sum(delta, 1, keepdim=True, out=b2)


def _output_slope(outputs: Tensor, labels: Tensor, row_weights: Tensor) -> Tensor:
    """Derivative of :func:`losses` by ``outputs``, both ``[P, b, o]``."""
    slope = row_weights / len(labels)
    if outputs.shape[-1] == 1:
        return ((torch.sigmoid(outputs[..., 0]) - labels) * slope).unsqueeze(-1)
    sign = 2 * labels - 1
    signed = torch.tanh((outputs[..., 1] - outputs[..., 0]) / 2) * sign
    error = torch.sigmoid(-signed) * (signed.square() - 1) * (0.5 * sign * slope)
    return torch.stack((-error, error), -1)


class FitRows(NamedTuple):
    """Rows ``[P, n, d]``, labels ``[n]`` float and row weights ``[n]``."""

    x: Tensor
    labels: Tensor
    row_weights: Tensor

    @classmethod
    def make(cls, x: Tensor, labels: Tensor, balance: bool) -> FitRows:
        """From rows and bool labels ``[n]``."""
        weights = balanced_weights(labels.cpu()) if balance else torch.ones(len(labels))
        return cls(x, labels.to(x.device, torch.float32), weights.to(x.device))


@dataclass
class _Best:
    """Best snapshot of every prober: ``weights`` as :class:`MLPWeights`, ``loss`` and ``age``
    (epochs since) ``[P]``."""

    weights: MLPWeights
    loss: Tensor
    age: Tensor

    def update(self, rows: Tensor, weights: MLPWeights, loss: Tensor) -> None:
        """Offer k probers, ``rows`` ``[k]`` (indices into P), their present weights (leading
        dimension k) and validation losses ``[k]``."""
        better = loss < self.loss[rows]
        self.age[rows] = torch.where(better, 0, self.age[rows] + 1)
        winners = rows[better]
        self.loss[winners] = loss[better]
        for kept, now in zip(self.weights, weights, strict=True):
            kept[winners] = now.detach()[better]


def train(fit: FitRows, held: FitRows | None, recipe: Recipe, hidden: int, seed: int) -> MLPWeights:
    """Train P probers; with ``recipe.patience`` each keeps its weights of lowest loss on ``held``
    and stops on its own.

    Raises:
        FitError: the weights left the finite numbers.
    """
    p, _, d = fit.x.shape
    generator = torch.Generator().manual_seed(seed)
    weights = first_weights(p, d, hidden, recipe.outputs, generator)
    weights = MLPWeights(*(t.to(fit.x.device) for t in weights))
    optimiser = _adamw(weights, recipe)
    active = torch.arange(p, device=fit.x.device)
    stopping = recipe.patience > 0 and held is not None
    best = _Best(
        weights.take(active),
        torch.full((p,), torch.inf, device=active.device),
        torch.zeros_like(active),
    )
    for _ in range(recipe.epochs):
        _epoch(fit, weights, optimiser, recipe, generator)
        if not stopping or held is None:
            continue
        best.update(
            active, weights, losses(forward(held.x, weights), held.labels, held.row_weights)
        )
        going = (best.age[active] < recipe.patience).nonzero().flatten()
        if len(going) == 0:
            break
        if len(going) < len(active):
            weights, optimiser = _shrink(weights, optimiser, going, recipe)
            fit, held = fit._replace(x=fit.x[going]), held._replace(x=held.x[going])
            active = active[going]
    result = best.weights if stopping else MLPWeights(*(t.detach() for t in weights))
    if not all(torch.isfinite(t).all() for t in result) or (
        stopping and not torch.isfinite(best.loss).all()
    ):
        raise FitError(
            "training diverged: weights or validation loss are not finite; are the states scaled "
            "sensibly?"
        )
    return result


def _epoch(
    fit: FitRows,
    weights: MLPWeights,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    generator: torch.Generator,
) -> None:
    """One pass over the rows in a new order."""
    device = fit.x.device
    order = torch.randperm(fit.x.shape[1], generator=generator).to(device)
    x, labels, row_weights = fit.x[:, order], fit.labels[order], fit.row_weights[order]
    h = weights.w1.shape[2]
    for at in range(0, len(order), recipe.batch):
        rows = slice(at, at + recipe.batch)
        keep = None
        if recipe.dropout > 0:
            drawn = torch.rand((len(order[rows]), h), generator=generator).to(device)
            keep = (drawn >= recipe.dropout) / (1.0 - recipe.dropout)
        gradients(x[:, rows].contiguous(), labels[rows], row_weights[rows], weights, keep)
        optimiser.step()


def _adamw(weights: MLPWeights, recipe: Recipe) -> torch.optim.AdamW:
    for t in weights:
        t.grad = torch.zeros_like(t)
    return torch.optim.AdamW(
        list(weights), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
    )


def _shrink(
    weights: MLPWeights, optimiser: torch.optim.AdamW, going: Tensor, recipe: Recipe
) -> tuple[MLPWeights, torch.optim.AdamW]:
    """Weights and optimiser state of the probers ``going`` only, so that stopped ones cost
    nothing."""
    smaller = weights.take(going)
    renewed = _adamw(smaller, recipe)
    for old, new in zip(weights, smaller, strict=True):
        state = optimiser.state[old]
        renewed.state[new] = {
            "step": state["step"],
            "exp_avg": state["exp_avg"][going],
            "exp_avg_sq": state["exp_avg_sq"][going],
        }
    return smaller, renewed
