"""The paper's prober: a two-layer perceptron on one state. Knows nothing of other points."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.types import ReadPoint
from safeswitch.probers.base import PROBERS
from safeswitch.probers.batched import MLPWeights, forward, probability
from safeswitch.probers.learned import LearnedProber, mark_unreadable
from safeswitch.probers.points import Labelled, TrainedPoints, train_points
from safeswitch.probers.recipes import RECIPES, Recipe
from safeswitch.probers.settings import Choice, Limit, Number
from safeswitch.probers.standardise import Standardiser


@PROBERS.add("mlp")
class MLPProber(LearnedProber):
    """``Linear(d, hidden) - ReLU - Linear(hidden, outputs)`` on the states at one point.

    Recipe ``default``: standardised inputs, one logit under class-balanced binary cross-entropy,
    dropout, early stopping on ``validation`` (or on a part held out of the fit rows). Recipe
    ``paper``: SafeSwitch (arXiv 2502.01042, section 3 and its code): two outputs, softmax inside
    forward and cross-entropy on its result, AdamW with learning rate and weight decay 1e-5, batch
    8, 20 epochs, no standardisation, no early stopping, ``validation`` unused.

    Args:
        point: Where to read.
        recipe: ``default`` or ``paper``.
        hidden: Hidden units.
        lr, weight_decay, dropout, epochs: Replace the recipe's value when given.

    Attributes:
        mean_, scale_: Input scaling, ``[d]``.
        w1_, b1_, w2_, b2_: Weights ``[d, hidden]``, ``[hidden]``, ``[hidden, outputs]``,
            ``[outputs]``.
    """

    kind = "mlp"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {
            "recipe": Choice(("default", "paper")),
            "hidden": Number(1, 65536, whole=True),
            "lr": Number(1e-8, 1.0, optional=True),
            "weight_decay": Number(0.0, 100.0, optional=True),
            "dropout": Number(0.0, 0.95, optional=True),
            "epochs": Number(1, 100_000, whole=True, optional=True),
        }
    )
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"mean_": "d", "scale_": "d", "w1_": "d h", "b1_": "h", "w2_": "h o", "b2_": "o"}
    )

    def __init__(
        self,
        point: ReadPoint,
        *,
        recipe: str = "default",
        hidden: int = 64,
        lr: float | None = None,
        weight_decay: float | None = None,
        dropout: float | None = None,
        epochs: int | None = None,
    ) -> None:
        self.points = (point,)
        self.recipe = recipe
        self.hidden = hidden
        self.lr = lr
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.epochs = epochs

    def sizes(self) -> dict[str, int]:
        return {"h": self.hidden, "o": self.full_recipe().outputs}

    def full_recipe(self) -> Recipe:
        """The named recipe with this prober's own values in it."""
        return RECIPES[self.recipe].override(
            lr=self.lr, weight_decay=self.weight_decay, dropout=self.dropout, epochs=self.epochs
        )

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; ``labels`` ``[n]`` bool; training is the batched training of one
        point."""
        self.check_settings()
        recipe, owner = self.full_recipe(), f"{self.kind} prober"
        trained = train_points(
            activations,
            labels,
            self.points,
            recipe,
            self.hidden,
            validation=validation,
            seed=seed,
            owner=owner,
        )
        return self.take(trained, 0)

    def take(self, trained: TrainedPoints, i: int) -> Self:
        """Become the i-th of ``trained``."""
        self.mean_, self.scale_ = (t[i].clone() for t in trained.scaling)
        w1, b1, w2, b2 = (t[i].clone() for t in trained.weights)
        self.w1_, self.b1_, self.w2_, self.b2_ = w1, b1[0], w2, b2[0]
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32 from the point's states ``[n, d]``."""
        rows, t = self.read(activations)
        x = Standardiser(t["mean_"], t["scale_"]).apply(rows).unsqueeze(0)
        weights = MLPWeights(
            t["w1_"][None], t["b1_"][None, None], t["w2_"][None], t["b2_"][None, None]
        )
        return mark_unreadable(probability(forward(x, weights)[0]), rows)
