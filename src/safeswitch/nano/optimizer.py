"""Optimiser of the base model: Muon for the matrices of the blocks, Adam for the rest.

Muon: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (momentum, then
orthogonalised by five Newton-Schulz rounds, all matrices of a shape at once).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from safeswitch.core.json_types import JsonObject

_NS = (3.4445, -4.7750, 2.0315)


def orthogonalise(batch: Tensor) -> Tensor:
    """Newton-Schulz on a stack of matrices ``[n, rows, columns]``; singular values end near 1."""
    x = batch
    flipped = x.shape[1] > x.shape[2]
    x = x.mT if flipped else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _NS
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if flipped else x
    return result


class MixedOptimizer:
    """Muon and Adam over the parameters of a model, in place.

    Args:
        muon_lr: Step of the block matrices, scaled by sqrt(max(1, rows / columns)).
        adam_lr: Step of embedding, head and norms.
    """

    def __init__(
        self, model: nn.Module, muon_lr: float, adam_lr: float, momentum: float = 0.95
    ) -> None:
        self.model, self.muon_lr, self.momentum = model, muon_lr, momentum
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.matrices: dict[tuple[int, ...], list[str]] = defaultdict(list)
        self.rest = []
        for name, p in self.parameters.items():
            if ".layers." in name and p.ndim == 2:
                self.matrices[tuple(p.shape)].append(name)
            else:
                self.rest.append(name)
        self.velocity = {
            n: torch.zeros_like(self.parameters[n])
            for names in self.matrices.values()
            for n in names
        }
        self.adam = torch.optim.AdamW(
            [self.parameters[n] for n in self.rest], lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.adam_lr = adam_lr

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One step with learning rates times ``scale``; clears the gradients."""
        grads = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        norm = torch.sqrt(torch.stack([grads[n].square().sum() for n in self.rest]).sum())
        clip = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * scale
        for name in self.rest:
            self.parameters[name].grad = grads[name] * clip
        self.adam.step()
        for shape, names in self.matrices.items():
            for name in names:
                self.velocity[name].lerp_(grads[name], 1 - self.momentum)
            looked = torch.stack([grads[n].lerp(self.velocity[n], self.momentum) for n in names])
            size = self.muon_lr * scale * max(1.0, shape[0] / shape[1]) ** 0.5
            for name, update in zip(names, orthogonalise(looked), strict=True):
                self.parameters[name].mul_(1 - 0.01 * scale * self.muon_lr).sub_(size * update)
        self.model.zero_grad()

    def state_dict(self) -> JsonObject:
        """Weights, momentum and Adam's state."""
        return {
            "weights": self.parameters,
            "velocity": self.velocity,
            "adam": self.adam.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: JsonObject) -> None:
        """Restore what ``state_dict`` gave, the model's weights included."""
        for own, given in ((self.parameters, state["weights"]), (self.velocity, state["velocity"])):
            for name, tensor in given.items():
                own[name].copy_(tensor)
        self.adam.load_state_dict(state["adam"])
