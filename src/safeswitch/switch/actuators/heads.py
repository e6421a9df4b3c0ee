"""Refusal heads beyond a plain difference: a sparse one, a soft one, one for the first tokens only.

Letters: n rows, d hidden size, V vocabulary. Knows nothing of gates or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from safeswitch.core.errors import SettingError, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import build, take
from safeswitch.core.types import MOST_TOKENS
from safeswitch.switch.actuators.base import ACTUATORS, HeadActuator, actuator_from_state

_NEEDS_MORE_THAN_VLLM_GIVES = (
    "needs the reply's token number or the request's score, which vLLM's logits processor is not "
    "given"
)
_MOST_ALPHA = 1e6


@ACTUATORS.add("sparse_head")
@dataclass(frozen=True, eq=False)
class SparseHead(HeadActuator):
    """Refusal head as a difference in few places: ``W + beta * D`` with D sparse.

    Args:
        rows: ``[m]`` vocabulary indices of D's entries.
        columns: ``[m]`` hidden indices of them.
        values: ``[m]``.
        shape: ``(V, d)``.
        beta: Fraction of the difference that is added, in [0, 1].
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]
    beta: float = 1.0
    kind: ClassVar[str] = "sparse_head"
    shapes: ClassVar[Mapping[str, str]] = {"rows": "int m", "columns": "int m", "values": "m"}

    def __post_init__(self) -> None:
        check_range("SparseHead", "beta", self.beta, 0.0, 1.0)
        object.__setattr__(self, "shape", (int(self.shape[0]), int(self.shape[1])))
        if (
            not (self.rows.shape == self.columns.shape == self.values.shape)
            or self.values.ndim != 1
        ):
            raise SettingError("SparseHead: rows, columns and values must be [m] each")
        for name, index, size in (
            ("rows", self.rows, self.shape[0]),
            ("columns", self.columns, self.shape[1]),
        ):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                got = f"{int(index.min())}..{int(index.max())}"
                raise SettingError(
                    f"SparseHead: {name} must lie in 0..{size - 1}, as shape says; got {got}"
                )

    @classmethod
    def of(cls, difference: Tensor, beta: float = 1.0) -> Self:
        """The entries of ``difference`` ``[V, d]`` that are not 0."""
        rows, columns = difference.nonzero(as_tuple=True)
        return cls(
            rows,
            columns,
            difference[rows, columns],
            (difference.shape[0], difference.shape[1]),
            beta,
        )

    def apply(self, logits: Tensor, hidden: Tensor) -> Tensor:
        index = torch.stack([self.rows, self.columns])
        matrix = torch.sparse_coo_tensor(
            index, self.values.float(), self.shape, check_invariants=False
        )
        added: Tensor = torch.sparse.mm(matrix, hidden.float().T).T
        return logits + (self.beta * added).to(logits.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(
            self,
            rows=self.rows.to(device),
            columns=self.columns.to(device),
            values=self.values.to(device, dtype),
        )

    def check(self, hidden_size: int, vocab_size: int) -> None:
        if self.shape != (vocab_size, hidden_size):
            raise SettingError(
                f"SparseHead: made for [V, d] = {self.shape}, but the model has "
                f"{(vocab_size, hidden_size)}"
            )


@dataclass(frozen=True, eq=False)
class _Around(HeadActuator):
    """A head around another one, in force on some requests or tokens more than on others."""

    inner: HeadActuator

    @property
    def uniform(self) -> bool:
        return False

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        config, tensors = self.inner.state()
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "inner"}
        return {"kind": self.kind, "inner": config, **own}, tensors

    @classmethod
    def rebuild(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        where = f"actuator {cls.kind!r}"
        inner = actuator_from_state(take(config, "inner", JsonMapping, where), tensors)
        if not isinstance(inner, HeadActuator) or isinstance(inner, _Around):
            raise SettingError(
                f"{where}: inner must be a refusal head of its own; got {inner.kind!r}"
            )
        own = {name: value for name, value in config.items() if name != "inner"}
        return build(cls, own, where, inner=inner)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(self, inner=self.inner.to(device, dtype))

    def check(self, hidden_size: int, vocab_size: int) -> None:
        self.inner.check(hidden_size, vocab_size)

    def apply(self, logits: Tensor, hidden: Tensor) -> Tensor:
        return self.inner.apply(logits, hidden)


@ACTUATORS.add("soft_head")
@dataclass(frozen=True, eq=False)
class SoftHead(_Around):
    """A head whose fraction rises with the score: ``W + beta(p) * (W_ref - W)``, ``beta(p) =
    clip((p - low) / (high - low))``.

    Args:
        inner: The refusal head.
        low: Score up to which nothing is added.
        high: Score from which the whole head is in force.
    """

    low: float = 0.0
    high: float = 1.0
    kind: ClassVar[str] = "soft_head"
    not_in_vllm: ClassVar[str | None] = _NEEDS_MORE_THAN_VLLM_GIVES

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise SettingError(
                f"SoftHead: needs 0 <= low < high <= 1; got low={self.low}, high={self.high}"
            )

    def fraction(self, scores: Tensor) -> Tensor:
        return ((scores.nan_to_num(1.0) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)


@ACTUATORS.add("early_head")
@dataclass(frozen=True, eq=False)
class EarlyHead(_Around):
    """Both heads mixed on the first reply tokens only (SafeDecoding, arXiv 2402.08983, section 4).

    The sample space is the shortest pair of top-k lists whose intersection holds ``common`` tokens;
    in it the probability is ``max(0, p + alpha * (p_ref - p))``, elsewhere 0. The result stands in
    for the logits as its logarithm.

    Args:
        inner: The refusal head, the paper's expert.
        tokens: Reply tokens on which it acts, the paper's m.
        alpha: Weight of the expert, 0 or more.
        common: Tokens that the sample space must hold, the paper's c.
    """

    tokens: int = 2
    alpha: float = 3.0
    common: int = 5
    kind: ClassVar[str] = "early_head"
    not_in_vllm: ClassVar[str | None] = _NEEDS_MORE_THAN_VLLM_GIVES

    def __post_init__(self) -> None:
        for name in ("tokens", "common"):
            check_range("EarlyHead", name, getattr(self, name), 1, MOST_TOKENS)
        check_range("EarlyHead", "alpha", self.alpha, 0.0, _MOST_ALPHA)

    @property
    def reach(self) -> int:  # type: ignore[override]
        return self.tokens

    def apply(self, logits: Tensor, hidden: Tensor) -> Tensor:
        base, expert = logits.float(), self.inner.apply(logits, hidden).float()
        common = min(self.common, base.shape[1])
        ranks = torch.maximum(
            *(odds.argsort(-1, descending=True).argsort(-1) for odds in (base, expert))
        )
        bar = ranks.kthvalue(common, dim=-1, keepdim=True).values
        p, q = base.softmax(-1), expert.softmax(-1)
        mixed = (p + self.alpha * (q - p)).clamp_min(0.0).masked_fill(ranks > bar, 0.0)
        return mixed.log().clamp_min(torch.finfo(torch.float32).min / 4).to(logits.dtype)
