"""How the small MLP is trained: the numbers, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType


@dataclass(frozen=True)
class Recipe:
    """One way to train ``Linear(d, hidden) - ReLU - Linear(hidden, outputs)`` with AdamW.

    Args:
        lr: Learning rate.
        weight_decay: AdamW's decoupled decay.
        batch: Rows a step.
        epochs: Most passes over the data.
        patience: Epochs without a lower validation loss before stopping; 0: all epochs, last
            weights kept.
        dropout: Fraction of hidden units dropped in training.
        standardise: Whether each feature is centred and scaled on the fit rows.
        balance: Whether both classes weigh the same in the loss.
        double_softmax: Two outputs, softmax inside forward, cross-entropy on what that returns (as
            published); else one logit under binary cross-entropy.
    """

    lr: float
    weight_decay: float
    batch: int
    epochs: int
    patience: int
    dropout: float
    standardise: bool
    balance: bool
    double_softmax: bool

    @property
    def outputs(self) -> int:
        return 2 if self.double_softmax else 1

    def override(self, **values: float | int | None) -> Recipe:
        """This recipe with those of ``values`` that are not None."""
        return replace(self, **{k: v for k, v in values.items() if v is not None})  # type: ignore[arg-type]


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "default": Recipe(2e-3, 1e-2, 32, 100, 12, 0.3, True, True, False),
        "paper": Recipe(1e-5, 1e-5, 8, 20, 0, 0.0, False, False, True),
    }
)
"""``paper``: SafeSwitch (arXiv 2502.01042) as its code has it: double softmax, lr 1e-5, wd 1e-5,
batch 8, 20 epochs."""

HELD_FRACTION = 0.15
"""Fraction of each class held out for early stopping when no validation part is given."""
