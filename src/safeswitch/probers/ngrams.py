"""Word n-grams of requests as hashed features. Knows nothing of probers, so that what reads words need
not load what fits them."""

from __future__ import annotations

from typing import Any

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ActivationError


def hashed_ngrams(activations: Activations, longest: int, buckets: int, owner: str) -> Any:
    """Which word n-grams of up to ``longest`` words stand in each request's text, hashed: sparse
    ``[n, buckets]``, rows of unit length.

    Raises:
        ActivationError: requests without their texts, said of ``owner``.
    """
    from sklearn.feature_extraction.text import HashingVectorizer  # heavy, and only text needs it

    if len(activations.texts) != len(activations):
        raise ActivationError(
            f"{owner}: needs one text a request; got {len(activations.texts)} for "
            f"{len(activations)}"
        )
    vectoriser = HashingVectorizer(
        ngram_range=(1, longest),
        n_features=buckets,
        binary=True,
        alternate_sign=False,
        norm="l2",
    )
    return vectoriser.transform(activations.texts)
