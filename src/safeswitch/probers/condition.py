"""Conditions on the whole prompt and boolean rules over them (CAST, arXiv 2409.05907, sections 3
and 4).

Shapes: n requests, K conditions, w prompt tokens, d hidden size. Knows nothing of steering.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError, check_range
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict import build, check_shapes, only, shown, take
from safeswitch.core.types import Position, ReadPoint
from safeswitch.probers.base import PROBERS, Prober, check_labels, not_fitted
from safeswitch.probers.learned import mark_unreadable
from safeswitch.probers.points import Labelled

WHOLE = Position("window", 0)
_LONGEST_RULE = 2000


@dataclass(frozen=True, eq=False)
class Condition:
    """``sim(h, proj_c h)`` above (or below) a threshold, h being the mean state of the prompt's
    tokens.

    Args:
        name: For rules; see :func:`plain_name`.
        layer: Where h is read.
        vector: c, ``[d]``.
        threshold: In [0, 1].
        above: Whether the condition holds above the threshold.
    """

    name: str
    layer: int
    vector: Tensor
    threshold: float
    above: bool

    def margin(self, states: Tensor) -> Tensor:
        """``[n]`` in [-1, 1], positive where the condition holds, for mean states ``[n, d]``."""
        gap = similarity(states, self.vector) - self.threshold
        return gap if self.above else -gap


def plain_name(category: str) -> str:
    """A category's name as rules spell it: lower case, other characters than letters and digits as
    ``_``."""
    return re.sub(r"\W+", "_", category.strip().lower()).strip("_")


def similarity(states: Tensor, vector: Tensor) -> Tensor:
    """Cosine of h and its projection ``c c^T h / c^T c``, that is ``|cos(h, c)|``: ``[n]`` for
    states ``[n, d]``."""
    return functional.cosine_similarity(states, vector.to(states)[None], dim=-1).abs()


def fit_condition(name: str, layer: int, states: Tensor, positive: Tensor) -> Condition:
    """Vector by PCA, threshold and side by the best F1 on the same rows, as published.

    Args:
        name: Of the condition.
        layer: Where ``states`` were read.
        states: Mean states ``[n, d]``.
        positive: ``[n]`` bool.

    Raises:
        FitError: one class only.
    """
    if not bool(positive.any()) or bool(positive.all()):
        raise FitError(f"condition {name!r}: needs requests of the category and others")
    middle = (states[positive].mean(0) + states[~positive].mean(0)) / 2
    vector = torch.linalg.svd(states - middle, full_matrices=False).Vh[0]
    found = similarity(states, vector)
    order = found.sort().values
    best = (-1.0, 0.5, True)
    for bar in ((order[1:] + order[:-1]) / 2).tolist():
        for above in (True, False):
            flagged = (found > bar) == above
            hits = int((flagged & positive).sum())
            f1 = 2 * hits / (int(flagged.sum()) + int(positive.sum()))
            if f1 > best[0]:
                best = (f1, bar, above)
    return Condition(name, layer, vector, best[1], best[2])


def parse_rule(rule: str, names: Sequence[str]) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """A function from margins ``[n]`` by name to the rule's margin ``[n]``: ``and`` is the least,
    ``or`` the greatest, ``not`` the negative.

    It is positive exactly where the rule, read as Boolean, holds.

    Examples:
        >>> margin = parse_rule("harm and not fiction", ["harm", "fiction"])
        >>> scores = {"harm": torch.tensor([0.5, 0.25]), "fiction": torch.tensor([-0.125, 0.75])}
        >>> margin(scores).tolist()
        [0.125, -0.75]

    Raises:
        SettingError: anything but names, ``and``, ``or``, ``not`` and brackets; a name that there
            is not.
    """
    if len(rule) > _LONGEST_RULE:
        raise SettingError(f"rule: has {len(rule)} characters; at most {_LONGEST_RULE} are read")
    try:
        tree = ast.parse(rule.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SettingError(f"rule {rule!r}: {error}; write names joined by and, or, not") from error

    def build(node: ast.expr) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Margins ``[n]`` by name in, the margin ``[n]`` of this part of the rule out: above 0
        where it holds. ``and`` is the smallest, ``or`` the largest, ``not`` the opposite."""
        if isinstance(node, ast.Name):
            if node.id not in names:
                raise SettingError(
                    f"rule {rule!r}: unknown condition {node.id!r}; known: {', '.join(names)}"
                )
            return lambda margins: margins[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = build(node.operand)
            return lambda margins: -inner(margins)
        if isinstance(node, ast.BoolOp):
            parts = [build(value) for value in node.values]
            least = isinstance(node.op, ast.And)
            return lambda margins: (torch.amin if least else torch.amax)(
                torch.stack([p(margins) for p in parts]), 0
            )
        raise SettingError(
            f"rule {rule!r}: only names joined by and, or, not are allowed; got "
            f"{ast.unparse(node)!r}"
        )

    return build(tree)


@PROBERS.add("condition")
class ConditionProber(Prober):
    """A Boolean rule over conditions; score ``(1 + margin) / 2``, above 0.5 exactly where the rule
    holds.

    Args:
        layer: Layer of the single condition that ``fit`` learns.

    Attributes:
        conditions_, rule_: What is asked.
    """

    kind = "condition"
    conditions_: tuple[Condition, ...]
    rule_: str
    _margin: Callable[[Mapping[str, Tensor]], Tensor]

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.points: tuple[ReadPoint, ...] = (ReadPoint(layer, WHOLE),)

    @classmethod
    def of(cls, conditions: Sequence[Condition], rule: str) -> Self:
        """A prober of given conditions.

        Raises:
            SettingError: a rule that cannot be read; see :func:`parse_rule`.
        """
        names = [c.name for c in conditions]
        if not conditions or len(set(names)) != len(names):
            raise SettingError(
                f"condition prober: needs conditions, each of another name; got {shown(names)}"
            )
        for condition in conditions:
            check_range(f"condition {condition.name!r}", "threshold", condition.threshold, 0.0, 1.0)
        prober = cls(conditions[0].layer)
        prober.conditions_, prober.rule_ = tuple(conditions), rule
        prober.points = tuple(dict.fromkeys(ReadPoint(c.layer, WHOLE) for c in conditions))
        prober._margin = parse_rule(rule, [c.name for c in conditions])
        return prober

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """Learn one condition, "unsafe", from ``labels`` ``[n]`` bool; ``validation`` and ``seed``
        have no effect."""
        truth = check_labels(activations, labels, f"{self.kind} prober")
        learned = fit_condition(
            "unsafe", self.layer, mean_states(activations, self.points[0]), truth
        )
        self.__dict__.update(self.of([learned], "unsafe").__dict__)
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from the conditions' windows ``[n, w, d]``."""
        self._check()
        margins = {
            c.name: c.margin(mean_states(activations, ReadPoint(c.layer, WHOLE)))
            for c in self.conditions_
        }
        return mark_unreadable(
            (1 + self._margin(margins)) / 2, torch.stack(list(margins.values()), 1)
        )

    def _check(self) -> None:
        if not hasattr(self, "conditions_"):
            raise not_fitted(self.kind)

    def state(self) -> tuple[JsonObject, dict[str, Tensor]]:
        """``(config, tensors)``, the one tensor being ``vectors`` ``[K, d]`` of K conditions; see
        :meth:`Prober.state`."""
        self._check()
        conditions = [
            {"name": c.name, "layer": c.layer, "threshold": c.threshold, "above": c.above}
            for c in self.conditions_
        ]
        vectors = torch.stack([c.vector for c in self.conditions_])
        return {"kind": self.kind, "rule": self.rule_, "conditions": conditions}, {
            "vectors": vectors
        }

    @classmethod
    def from_state(cls, config: JsonMapping, tensors: Mapping[str, Tensor]) -> Self:
        """Inverse of :meth:`state`, from ``vectors`` ``[K, d]``."""
        where = f"{cls.kind} prober"
        only(config, ("kind", "rule", "conditions"), where)
        conditions = take(config, "conditions", tuple[JsonMapping, ...], where)
        check_shapes(where, tensors, {"vectors": "K d"}, {"K": len(conditions)})
        pairs = enumerate(zip(conditions, tensors["vectors"], strict=True))
        conditions = [
            build(Condition, one, f"{where}.conditions[{i}]", vector=v.clone())
            for i, (one, v) in pairs
        ]
        return cls.of(conditions, take(config, "rule", str, where))


def mean_states(activations: Activations, point: ReadPoint) -> Tensor:
    """Mean over a window's real tokens: ``[n, d]`` float32; NaN where one of them is."""
    states, mask = activations.at(point).float(), activations.masks[point]
    return states.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
