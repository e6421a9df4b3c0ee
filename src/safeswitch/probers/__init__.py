"""Probers: fit on hidden states and labels, score in [0, 1]. Know nothing of where states come from.

Importing the package registers every kind, so that ``prober_from_state`` finds it.
"""

from safeswitch.probers import (
    apart,
    condition,
    ensemble,
    fusion,
    linear,
    mean_difference,
    mlp,
    multilayer,
    outputs,
    steps,
    text,
    window,
)

__all__ = [
    "apart", "condition", "ensemble", "fusion", "linear", "mean_difference", "mlp", "multilayer",
    "outputs", "steps", "text", "window",
]
