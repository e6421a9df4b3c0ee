"""Prompts of the test side that also stand, word for word or nearly, on the training side.

Knows texts. Knows nothing of files or models. Near means: the sets of character 5-grams of the
normalised prompts overlap by at least 0.8 (Jaccard: shared over all). The comparison is exact, not
sampled: pairs that can reach the threshold share one of their rarest n-grams (prefix filter), so
only those are looked up in an inverted index.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safeswitch.core.errors import check_range
from safeswitch.core.types import Example
from safeswitch.data.text import normalise

_NGRAM = 5


@dataclass(frozen=True)
class Leak:
    """A test prompt and the training prompt that it resembles most.

    Args:
        train_id: Id of the training example.
        test_id: Id of the test example.
        kind: ``exact`` when the normalised texts are equal.
        overlap: Fraction of n-grams in common, in [0, 1].
    """

    train_id: str
    test_id: str
    kind: Literal["exact", "near"]
    overlap: float


def leaks(
    train: Sequence[Example], test: Sequence[Example], *, threshold: float = 0.8
) -> list[Leak]:
    """The leaks from ``train`` into ``test``: at most one a test example (the closest), in test
    order.

    Only the last user turn is compared. A prompt inside another's jailbreak template is not near to
    it: keep those together by ``group``.

    Args:
        train: What is learned from.
        test: What is measured on.
        threshold: Least overlap that counts as near, in [0.5, 1].

    Raises:
        SettingError: threshold outside its range.
    """
    check_range("leaks", "threshold", threshold, 0.5, 1.0)
    train_texts, test_texts = (
        [normalise(e.prompt) for e in train],
        [normalise(e.prompt) for e in test],
    )
    exact: dict[str, int] = {}
    for i, text in enumerate(train_texts):
        exact.setdefault(text, i)
    near = _nearest(
        list(exact), [t for t in dict.fromkeys(test_texts) if t not in exact], threshold
    )
    found = []
    for example, text in zip(test, test_texts, strict=True):
        if text in exact:
            found.append(Leak(train[exact[text]].id, example.id, "exact", 1.0))
        elif text in near:
            match, overlap = near[text]
            found.append(Leak(train[exact[match]].id, example.id, "near", overlap))
    return found


def _ngrams(text: str) -> set[str]:
    return {text[i : i + _NGRAM] for i in range(max(1, len(text) - _NGRAM + 1))}


def _nearest(known: list[str], asked: list[str], threshold: float) -> dict[str, tuple[str, float]]:
    """For each text of ``asked`` within ``threshold`` of one of ``known``: that text and the
    overlap."""
    frequency: Counter[str] = Counter()
    for text in (*known, *asked):
        frequency.update(_ngrams(text))
    rank = {
        gram: i
        for i, (gram, _) in enumerate(
            sorted(frequency.items(), key=lambda item: (item[1], item[0]))
        )
    }

    def ranked(text: str) -> list[int]:
        return sorted(rank[gram] for gram in _ngrams(text))

    index: dict[int, list[int]] = {}
    for i, text in enumerate(asked):
        for gram in _prefix(ranked(text), threshold):
            index.setdefault(gram, []).append(i)
    asked_sets: dict[int, set[int]] = {}
    best: dict[str, tuple[str, float]] = {}
    for text in known:
        grams = ranked(text)
        candidates = {i for gram in _prefix(grams, threshold) for i in index.get(gram, ())}
        for i in candidates:
            if i not in asked_sets:
                asked_sets[i] = set(ranked(asked[i]))
            other = asked_sets[i]
            if min(len(grams), len(other)) < threshold * max(len(grams), len(other)):
                continue
            shared = len(other.intersection(grams))
            overlap = shared / (len(grams) + len(other) - shared)
            if overlap >= threshold and overlap > best.get(asked[i], ("", 0.0))[1]:
                best[asked[i]] = (text, overlap)
    return best


def _prefix(grams: list[int], threshold: float) -> list[int]:
    """The rarest n-grams, of which one must be shared with any text that reaches ``threshold``."""
    return grams[: len(grams) - math.ceil(threshold * len(grams) - 1e-9) + 1]
