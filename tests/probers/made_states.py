"""States of made-up requests whose classes differ along a known direction, at every kind of read
point."""

from __future__ import annotations

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import ReadPoint

D, W = 12, 8
LAST = ReadPoint(4)
EARLY = ReadPoint(2)
NEXT = ReadPoint(3)
"""One block behind ``EARLY``; its step tells the classes apart too."""
PILOT = ReadPoint(4, ReadPoint.parse("4@pilot:3").position)
WINDOW = ReadPoint.parse("4@window:8")
EARLY_MEAN, NEXT_MEAN = (ReadPoint.parse(f"{layer}@mean:8") for layer in (2, 3))
ATTN, MLP = (ReadPoint.parse(f"3.{part}@prompt_end") for part in ("attn", "mlp"))


def make_acts(n: int = 120, seed: int = 0, gap: float = 5.0) -> tuple[Activations, Tensor]:
    """n requests, half of them positive, in mixed order."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2 == 0
    shift = torch.where(labels, gap / 2, -gap / 2)[:, None] * torch.eye(D)[0]
    scale = torch.linspace(1.0, 4.0, D)
    flat = {p: (torch.randn(n, D, generator=g) + shift) * scale + 5.0 for p in (EARLY, LAST, PILOT)}
    lengths = torch.randint(2, W + 1, (n,), generator=g)
    mask = torch.arange(W)[None] >= W - lengths[:, None]
    tokens = (torch.randn(n, W, D, generator=g) + shift[:, None]) * scale
    texts = tuple(
        f"please {'break' if y else 'paint'} thing number {i}"
        for i, y in enumerate(labels.tolist())
    )
    flat[NEXT] = flat[EARLY] + (torch.randn(n, D, generator=g) + shift) * scale.flip(0)
    flat[EARLY_MEAN] = torch.randn(n, D, generator=g) * scale
    flat[NEXT_MEAN] = flat[EARLY_MEAN] + (torch.randn(n, D, generator=g) + shift) * scale
    for point in (ATTN, MLP):
        flat[point] = (torch.randn(n, D, generator=g) + shift) * scale.flip(0) - 2.0
    return Activations({**flat, WINDOW: tokens * mask[..., None]}, {WINDOW: mask}, texts), labels
