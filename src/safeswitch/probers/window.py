"""A probe on every token of a window, pooled. Knows nothing of other points.

Shapes: n requests, w window tokens, d hidden size, h hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ActivationError, FitError, SettingError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS, check_labels
from safeswitch.probers.learned import LearnedProber, check_width, mark_unreadable
from safeswitch.probers.points import Labelled
from safeswitch.probers.recipes import HELD_FRACTION
from safeswitch.probers.settings import Limit, Number
from safeswitch.probers.split import balanced_weights, stratified_split
from safeswitch.probers.standardise import fit_standardiser

BATCH, PATIENCE, LONGEST_SMOOTH = 32, 12, 16


class _Tokens(NamedTuple):
    """States ``[n, w, d]``, mask ``[n, w]`` bool, labels ``[n]`` float, row weights ``[n]``."""

    states: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor


@PROBERS.add("window")
class WindowProber(LearnedProber):
    """A token-wise probe, smoothed over adjacent tokens and pooled by softmax, trained end to end
    on request labels.

    Constitutional Classifiers++ (arXiv 2601.04603, linear probes): sliding-window mean of the token
    logits, pooling weighted by the softmax of those means, binary cross-entropy on the pooled
    logit.

    Args:
        point: A ``window`` read point.
        smooth: Tokens averaged (M of the paper, 16 there). None: half of the median request's
            tokens, at most 16.
        tau: Temperature of the pooling, in logits.
        hidden: Hidden units of the token probe; 0 is linear.
        lr, weight_decay, epochs: AdamW and the most passes over the data; stops early on
            ``validation`` or a held part.

    Attributes:
        mean_, scale_: Input scaling over real tokens, ``[d]``.
        w1_, b1_: First layer ``[d, h]``, ``[h]`` (linear: h = 1 and it is the whole probe).
        w2_, b2_: Second layer ``[h]``, ``[1]`` (linear: 1 and 0).
        smooth_: M in force, int64 ``[1]``.
    """

    kind = "window"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {
            "smooth": Number(1, 65536, whole=True, optional=True),
            "tau": Number(1e-3, 1e3),
            "hidden": Number(0, 4096, whole=True),
            "lr": Number(1e-8, 1.0),
            "weight_decay": Number(0.0, 100.0),
            "epochs": Number(1, 100_000, whole=True),
        }
    )
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "mean_": "d",
            "scale_": "d",
            "w1_": "d h",
            "b1_": "h",
            "w2_": "h",
            "b2_": "1",
            "smooth_": "int 1",
        }
    )
    POSITIONS = ("window",)

    def __init__(
        self,
        point: ReadPoint,
        *,
        smooth: int | None = None,
        tau: float = 1.0,
        hidden: int = 0,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        epochs: int = 100,
    ) -> None:
        self.points = (point,)
        self.smooth = smooth
        self.tau = tau
        self.hidden = hidden
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs

    def sizes(self) -> dict[str, int]:
        return {"h": self.hidden or 1}

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`, from ``mean`` and ``scale`` ``[d]``, ``w1`` ``[d, h]`` and the
        others, ``smooth`` ``[1]`` among them."""
        prober = super().from_state(config, tensors)
        limit = cls.SETTINGS["smooth"]
        if not limit.accepts(int(prober.smooth_)):
            raise SettingError(
                f"{cls.kind} prober: tensor 'smooth' must hold {limit}; got {int(prober.smooth_)}"
            )
        return prober

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; windows ``[n, w, d]`` with masks ``[n, w]``, ``labels`` ``[n]``
        bool."""
        self.check_settings()
        truth = check_labels(activations, labels, f"{self.kind} prober")
        if validation is None:
            fit_rows, held_rows = stratified_split(truth, HELD_FRACTION, seed)
            validation = activations.select(held_rows), truth[held_rows]
            activations, truth = activations.select(fit_rows), truth[fit_rows]
        fit = self._tokens(activations, truth)
        held = self._tokens(
            validation[0], check_labels(*validation, owner=f"{self.kind} prober (validation)")
        )
        check_width(
            held.states, fit.states.shape[-1], self.points[0], f"{self.kind} prober (validation)"
        )
        for part in (fit, held):
            if not part.mask.any(1).all():
                raise ActivationError(
                    f"{self.kind} prober: a request without any token at {self.points[0]}"
                )
        self.mean_, self.scale_ = fit_standardiser(fit.states[fit.mask])
        half = int(fit.mask.sum(1).median()) // 2
        smooth = self.smooth or min(LONGEST_SMOOTH, max(1, half))
        self.smooth_ = torch.tensor([smooth], device=fit.states.device)
        self._train(fit, held, seed)
        return self

    def _tokens(self, activations: Activations, truth: Tensor | None = None) -> _Tokens:
        """Window states with masked tokens set to zero, whatever they held."""
        point, owner = self.points[0], f"{self.kind} prober"
        states = activations.at(point)
        mask = activations.masks.get(point)
        if states.dim() != 3 or mask is None or mask.shape != states.shape[:2]:
            have = "none" if mask is None else str(list(mask.shape))
            raise ActivationError(
                f"{owner}: needs states [n, w, d] and a mask [n, w] at {point}; got "
                f"{list(states.shape)}, mask {have}"
            )
        mask = mask.bool().to(states.device)
        clean = torch.where(mask.unsqueeze(-1), states.float(), 0.0)
        labels = torch.zeros(len(mask), dtype=torch.bool) if truth is None else truth
        return _Tokens(
            clean, mask, labels.float().to(clean.device), balanced_weights(labels).to(clean.device)
        )

    def _train(self, fit: _Tokens, held: _Tokens, seed: int) -> None:
        """AdamW on the pooled loss, keeping the weights of lowest loss on ``held``."""
        generator = torch.Generator().manual_seed(seed)
        weights = self._first_weights(fit.states, generator)
        optimiser = torch.optim.AdamW(weights, lr=self.lr, weight_decay=self.weight_decay)
        best, lowest, age = [w.detach().clone() for w in weights], torch.inf, 0
        for _ in range(self.epochs):
            order = torch.randperm(len(fit.labels), generator=generator).to(fit.states.device)
            for at in range(0, len(order), BATCH):
                batch = _Tokens(*(t[order[at : at + BATCH]] for t in fit))
                optimiser.zero_grad()
                self._loss(batch, weights).backward()
                optimiser.step()
            with torch.no_grad():
                loss = float(self._loss(held, weights))
            age += 1
            if loss < lowest:
                best, lowest, age = [w.detach().clone() for w in weights], loss, 0
            if age >= PATIENCE:
                break
        if lowest == torch.inf:
            raise FitError(
                f"{self.kind} prober: training diverged; are the states at {self.points[0]} scaled "
                "sensibly?"
            )
        ones = [torch.ones(1, device=best[0].device), torch.zeros(1, device=best[0].device)]
        self.w1_, self.b1_, self.w2_, self.b2_ = best if self.hidden else best + ones

    def _first_weights(self, states: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Zeros for the linear probe (pooling starts as the plain mean), ``torch.nn.Linear``'s
        start otherwise."""
        d, h = states.shape[-1], self.hidden
        shapes = [(d, h), (h,), (h,), (1,)] if h else [(d, 1), (1,)]
        reach = [d**-0.5, d**-0.5, h**-0.5, h**-0.5] if h else [0.0, 0.0]
        drawn = [
            (torch.rand(s, generator=generator) * 2 - 1) * r
            for s, r in zip(shapes, reach, strict=True)
        ]
        return [w.to(states.device).requires_grad_() for w in drawn]

    def _pooled(
        self, tokens: _Tokens, weights: list[Tensor], scaling: tuple[Tensor, Tensor]
    ) -> Tensor:
        """One logit a request, ``[n]``."""
        hidden = (tokens.states - scaling[0]) / scaling[1] @ weights[0] + weights[1]
        logits = torch.relu(hidden) @ weights[2] + weights[3] if self.hidden else hidden[..., 0]
        return pool_tokens(logits, tokens.mask, int(self.smooth_), self.tau)

    def _loss(self, tokens: _Tokens, weights: list[Tensor]) -> Tensor:
        logits = self._pooled(tokens, weights, (self.mean_, self.scale_))
        losses = F.binary_cross_entropy_with_logits(logits, tokens.labels, reduction="none")
        return (losses * tokens.weights).mean()

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from a window ``[n, w, d]``; NaN too for a
        request without any token."""
        self.learned()
        tokens = self._tokens(activations)
        check_width(tokens.states, len(self.mean_), self.points[0], f"{self.kind} prober")
        t = self.learned(tokens.states.device)
        weights = [t[name] for name in ("w1_", "b1_", "w2_", "b2_")]
        logits = self._pooled(tokens, weights, (t["mean_"], t["scale_"]))
        return mark_unreadable(torch.sigmoid(logits), tokens.states)


def right_align(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``values`` and ``mask`` ``[n, w]`` with each row's real tokens moved to its end, in order;
    padding becomes 0."""
    order = torch.argsort(mask.to(torch.int8), dim=1, stable=True)
    mask = mask.gather(1, order)
    return torch.where(mask, values.gather(1, order), 0.0), mask


def sliding_mean(logits: Tensor, mask: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Mean of each ``m`` adjacent token logits; a row with fewer than ``m`` tokens has one mean, of
    all of them.

    Args:
        logits: ``[n, w]``, right-aligned (see :func:`right_align`).
        mask: ``[n, w]`` bool.
        m: Length of the sliding window in tokens, 1 or more.

    Returns:
        Means ``[n, w]``, each at its window's last token, and a bool mask ``[n, w]`` of where there
        is one.

    Examples:
        >>> logits = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 5.0]])
        >>> means, there = sliding_mean(logits, logits > 0, 2)
        >>> means.tolist()
        [[0.0, 1.5, 4.0], [0.0, 0.0, 5.0]]
        >>> there.tolist()
        [[False, True, True], [False, False, True]]
    """
    if logits.numel() == 0:
        return logits, mask
    both = F.pad(torch.stack((logits, mask.to(logits.dtype)), 1), (m - 1, 0))
    sums, counts = (F.avg_pool1d(both, m, stride=1) * m).unbind(1)
    counts = counts.round()
    full = counts >= mask.sum(1, keepdim=True).clamp(1, m)
    return torch.where(full, sums / counts.clamp_min(1.0), 0.0), full & mask


def softmax_pool(logits: Tensor, mask: Tensor, tau: float) -> Tensor:
    """``sum_t softmax(logits / tau)_t * logits_t`` over the unmasked tokens, ``[n]``; NaN for a row
    without any."""
    weights = torch.softmax((logits / tau).masked_fill(~mask, -torch.inf), dim=1)
    return (weights * logits).sum(1)


def pool_tokens(logits: Tensor, mask: Tensor, m: int, tau: float) -> Tensor:
    """One logit a request ``[n]`` from token logits ``[n, w]``: masked tokens never count, wherever
    they stand."""
    aligned, real = right_align(logits, mask)
    return softmax_pool(*sliding_mean(aligned, real, m), tau)
