"""Logistic regression with L2, solved by L-BFGS-B in float64: deterministic, dense or sparse
inputs, bounds if wanted.

Shapes: n rows, d features. Knows nothing of probers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from safeswitch.core.errors import FitError

Array = NDArray[np.float64]


def fit_logistic(
    rows: Any,
    targets: Array,
    weights: Array,
    *,
    l2: float,
    centre: Array | None = None,
    nonnegative: bool = False,
    start: Array | None = None,
) -> Array:
    """Minimise ``sum_i weights_i * logloss_i + l2 / 2 * |w - centre|^2``; the intercept is not
    penalised.

    Args:
        rows: ``[n, d]`` array, or a scipy sparse matrix of that shape.
        targets: ``[n]`` in [0, 1]; may be soft (Platt's targets).
        weights: ``[n]``.
        l2: Strength of the penalty (scikit-learn's ``1 / C``).
        centre: ``[d]`` where the penalty pulls to (default: 0).
        nonnegative: Keep the d weights at 0 or more; the intercept stays free.
        start: ``[d + 1]`` first guess.

    Returns:
        ``[d + 1]``: weights, then intercept.

    Raises:
        FitError: the solver left the finite numbers.
    """
    from scipy.optimize import minimize  # heavy, and only fitting needs it

    d = int(rows.shape[1])
    middle = np.zeros(d) if centre is None else centre

    def objective(theta: Array) -> tuple[float, Array]:
        logits = rows @ theta[:d] + theta[d]
        loss = float(weights @ (np.logaddexp(0.0, logits) - targets * logits))
        residual = weights * (_sigmoid(logits) - targets)
        away = theta[:d] - middle
        gradient = np.append(rows.T @ residual + l2 * away, residual.sum())
        return loss + 0.5 * l2 * float(away @ away), gradient

    first = np.append(middle, 0.0) if start is None else start
    bounds = [(0.0, None)] * d + [(None, None)] if nonnegative else None
    options = {"maxiter": 1000, "gtol": 1e-6 * max(1.0, float(weights.sum())), "ftol": 1e-12}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    theta = np.asarray(found.x, dtype=np.float64)
    if not np.isfinite(theta).all():
        raise FitError(
            "logistic regression did not reach finite weights; are the states scaled sensibly?"
        )
    return theta


def log_loss(rows: Any, targets: Array, weights: Array, theta: Array) -> float:
    """Weighted mean log-loss of ``theta`` ``[d + 1]`` on ``rows`` ``[n, d]``."""
    logits = rows @ theta[:-1] + theta[-1]
    return float(weights @ (np.logaddexp(0.0, logits) - targets * logits) / weights.sum())


def _sigmoid(logits: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))
