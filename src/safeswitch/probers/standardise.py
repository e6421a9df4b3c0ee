"""Per-feature mean and scale. Shapes: n rows, d features. Knows nothing of labels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

RELATIVE_FLOOR = 1e-3
"""A scale is at least this fraction of the root mean square of all scales."""


class Standardiser(NamedTuple):
    """Mean and scale, float32 ``[d]`` each."""

    mean: Tensor
    scale: Tensor

    def apply(self, rows: Tensor) -> Tensor:
        """``(rows - mean) / scale`` for rows ``[..., d]``."""
        return (rows - self.mean) / self.scale


def fit_standardiser(rows: Tensor) -> Standardiser:
    """Mean and standard deviation of each column of ``rows`` ``[n, d]``, summed in float64.

    The scale has a floor (``RELATIVE_FLOOR`` of the typical scale, and 1 when no column varies), so
    that a column that was constant on the fit data cannot drown all others when it moves later.
    """
    wide = rows.double()
    mean, std = wide.mean(0), wide.std(0, correction=0)
    typical = float(std.square().mean().sqrt())
    scale = std.clamp_min(RELATIVE_FLOOR * typical) if typical > 1e-12 else std.new_ones(std.shape)
    return Standardiser(mean.float(), scale.float())
