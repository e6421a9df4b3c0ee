"""Stage 1's threshold from safe sources that stage 1 was not fitted on.

A threshold set on held-out rows of the sources that are fitted on promises too much elsewhere: the
reader has learnt those sources' style. Here each safe source is scored by a reader that never saw
it. Knows nothing of engines or gates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from safeswitch.core.errors import FitError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example
from safeswitch.data.splits import tied_rows
from safeswitch.fitting.observe import ReadPrompts
from safeswitch.probers.build import make_prober
from safeswitch.probers.calibrate import SourceThreshold, source_threshold

FEWEST_SOURCES = 4
FEWEST_ROWS = 10
"""Benign requests without which a source's own rate says nothing."""
MOST_FOLDS = 8


def source_folds(train: Sequence[Example], rest: Sequence[Example]) -> list[tuple[str, ...]]:
    """Benign sources in the groups in which they are left out of the fit, at most ``MOST_FOLDS``.

    A source counts that has ``FEWEST_ROWS`` ordinary requests in ``train`` and ``rest`` together,
    and without which ``train`` still holds both labels.

    Raises:
        FitError: fewer than ``FEWEST_SOURCES`` such sources, or a group without which a label is
            missing.
    """
    safe = Counter(e.source for e in (*train, *rest) if e.ordinary)
    enough = [name for name in sorted(safe) if safe[name] >= FEWEST_ROWS]
    named = [name for name in enough if not _missing(train, (name,))]
    if len(named) < FEWEST_SOURCES:
        have = ", ".join(f"{name!r} ({safe[name]})" for name in sorted(safe)) or "none"
        raise FitError(
            f"calibrating by source needs at least {FEWEST_SOURCES} sources of {FEWEST_ROWS} safe "
            "requests or more that are no look-alikes, none of them the only one of a label; "
            f"{len(named)} of these count: "
            f"{have}; give more safe sources, or calibrate pooled"
        )
    count = min(MOST_FOLDS, len(named))
    folds: list[list[str]] = [[] for _ in range(count)]
    for place, name in enumerate(named):  # neighbours by name are often relatives: out together
        folds[place * count // len(named)].append(name)
    for fold in folds:
        if missing := _missing(train, fold):
            out = ", ".join(map(repr, fold))
            raise FitError(
                f"calibrating by source: without {out} there is no {missing} request to fit on"
            )
    return [tuple(fold) for fold in folds]


def _missing(train: Sequence[Example], sources: Sequence[str]) -> str:
    """The label that ``train`` lacks without ``sources``; empty where it has both."""
    left = {e.label for e in train if e.source not in sources}
    return next((label for label in ("safe", "unsafe") if label not in left), "")


def calibrate_by_source(
    spec: JsonMapping,
    train: ReadPrompts,
    validation: ReadPrompts,
    calibration: ReadPrompts,
    *,
    budget: float,
    seed: int,
) -> SourceThreshold:
    """The threshold for the prober of ``spec``, from safe requests of sources that it never saw.

    For each group of :func:`source_folds` the prober is fitted on ``train`` without the group's
    sources and without what is tied to their requests (:func:`safeswitch.data.splits.tied_rows`),
    and scores their ordinary requests in all three parts.
    :func:`safeswitch.probers.calibrate.source_threshold` makes one threshold of the scores.

    Raises:
        FitError: see :func:`source_folds`.
    """
    parts = (train, validation, calibration)
    examples = [e for part in parts for e in part.examples]
    tied = tied_rows(examples)
    cuts = (len(train.examples), len(validation.examples), len(calibration.examples))
    scores: dict[str, Tensor] = {}
    for fold in source_folds(train.examples, [*validation.examples, *calibration.examples]):
        out = {group for group, e in zip(tied, examples, strict=True) if e.source in fold}
        fit_rows, held_rows, _ = torch.tensor([group not in out for group in tied]).split(cuts)
        held_labels = validation.unsafe[held_rows]
        both = bool(held_labels.any()) and not bool(held_labels.all())
        reader = make_prober(spec).fit(
            train.activations.select(fit_rows),
            train.unsafe[fit_rows],
            seed=seed,
            validation=(validation.activations.select(held_rows), held_labels) if both else None,
        )
        for name in fold:
            own = [
                reader.score(part.activations.select(_ordinary_of(part, name))) for part in parts
            ]
            scores[name] = torch.cat(own).cpu()
    return source_threshold(scores, budget)


def _ordinary_of(part: ReadPrompts, source: str) -> Tensor:
    """Bool ``[n]``: the ordinary requests of ``source``."""
    return torch.tensor([e.source == source and e.ordinary for e in part.examples])
