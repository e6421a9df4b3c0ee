"""Bag of word n-grams: reads the request's text, no state at all.

The baseline that every prober is shown against (probers on states can be no better than trigger
words: Wang et al., arXiv 2509.03888), and a reader for fusion, since it fails differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.probers.base import PROBERS, check_labels
from safeswitch.probers.learned import LearnedProber
from safeswitch.probers.logistic import fit_logistic
from safeswitch.probers.ngrams import hashed_ngrams
from safeswitch.probers.points import Labelled
from safeswitch.probers.settings import Limit, Number
from safeswitch.probers.split import balanced_weights


@PROBERS.add("ngram")
class NgramProber(LearnedProber):
    """Class-balanced logistic regression on hashed word n-grams (presence, each text of unit
    length).

    Args:
        longest: Longest n-gram in words.
        buckets: Hash buckets, that is weights.
        l2: Strength of the penalty on the summed loss (scikit-learn's ``1 / C``).

    Attributes:
        weights_: ``[buckets + 1]``, the intercept last.
    """

    kind = "ngram"
    SETTINGS: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {
            "longest": Number(1, 8, whole=True),
            "buckets": Number(2, 2**22, whole=True),
            "l2": Number(1e-8, 1e8),
        }
    )
    LEARNED: ClassVar[Mapping[str, str]] = MappingProxyType({"weights_": "b"})
    TAKES_POINT = False
    reads_text = True

    def __init__(self, *, longest: int = 2, buckets: int = 2**16, l2: float = 0.1) -> None:
        self.points = ()
        self.longest = longest
        self.buckets = buckets
        self.l2 = l2

    def sizes(self) -> dict[str, int]:
        return {"b": self.buckets + 1}

    def fit(
        self,
        activations: Activations,
        labels: Tensor,
        *,
        validation: Labelled | None = None,
        seed: int = 0,
    ) -> Self:
        """See :meth:`Prober.fit`; ``labels`` ``[n]`` bool; ``validation`` and ``seed`` have no
        effect."""
        self.check_settings()
        truth = check_labels(activations, labels, f"{self.kind} prober")
        weights = balanced_weights(truth).double().numpy()
        theta = fit_logistic(
            self._features(activations), truth.double().numpy(), weights, l2=self.l2
        )
        self.weights_ = torch.from_numpy(theta).float()
        return self

    def score(self, activations: Activations) -> Tensor:
        """See :meth:`Prober.score`: ``[n]`` float32, on the device of the states, or on CPU when
        there are none."""
        theta = self.learned(torch.device("cpu"))["weights_"].double().numpy()
        device = next((t.device for t in activations.states.values()), torch.device("cpu"))
        if len(activations) == 0:
            return torch.empty(0, device=device)
        logits = np.asarray(self._features(activations) @ theta[:-1]) + theta[-1]
        return torch.sigmoid(torch.from_numpy(logits)).float().to(device)

    def _features(self, activations: Activations) -> Any:
        """Sparse ``[n, buckets]``."""
        return hashed_ngrams(activations, self.longest, self.buckets, f"{self.kind} prober")
