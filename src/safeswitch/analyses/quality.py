"""How well a prober reads, by layer and by pilot token (SafeSwitch, arXiv 2502.01042, its layer and
k figures).

Shapes: n requests. Knows nothing of logs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.activations.states import Activations
from safeswitch.analyses.base import ANALYSES, FinishedRun
from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Example, Position, ReadPoint
from safeswitch.data.splits import grouped_split, tied_rows
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.probers.sweep import sweep

PILOTS: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8)


@ANALYSES.add("quality")
def quality_of(run: FinishedRun) -> list[JsonObject]:
    """How well a prober reads the run's requests, by layer and pilot token."""
    return prober_quality(run.engine, run.examples, run.complied, seed=run.seed)


def prober_quality(
    engine: TransformersEngine,
    examples: Sequence[Example],
    complied: Sequence[bool | None],
    *,
    pilots: Sequence[int] = PILOTS,
    seed: int = 0,
) -> list[JsonObject]:
    """AUROC with a bootstrap interval at every layer, for every number of reply tokens of the
    base model.

    Probers are fitted on half of the requests and measured on the other half; requests of one group
    stay together. What is told apart is ``unsafe`` (the request) and ``complied`` (the reply, among
    unsafe requests that have a verdict).

    Args:
        engine: The model.
        examples: Labelled requests.
        complied: Whether the base model complied, None where that is not known.
        pilots: Reply tokens fed.
        seed: Of split, fitting and bootstrap.

    Returns:
        One row a figure: ``told`` apart, ``layer``, ``pilot``, ``metric``, value, interval and
        number of measured requests.

    Raises:
        DataError: labels of one class only, on either side.
    """
    lm = engine.lm
    sequences, lengths, _ = prompt_sequences(lm, examples)
    longest = max(pilots)
    if longest:
        replies = engine.generate(examples, max_new_tokens=longest, do_sample=False)
        sequences = [
            [*row, *reply.token_ids] for row, reply in zip(sequences, replies, strict=True)
        ]
    points = [
        ReadPoint(layer, Position("pilot", k)) for layer in range(lm.num_layers + 1) for k in pilots
    ]
    activations = record(lm, sequences, lengths, points, dtype=torch.float32)
    unsafe: list[bool | None] = [example.unsafe for example in examples]
    among_unsafe = [c if u else None for c, u in zip(complied, unsafe, strict=True)]
    figures = _figures(examples, activations, points, "unsafe", unsafe, seed)
    if not figures:
        raise DataError("prober quality: needs safe and unsafe requests in several groups")
    return figures + _figures(examples, activations, points, "complied", among_unsafe, seed)


def _figures(
    examples: Sequence[Example],
    activations: Activations,
    points: Sequence[ReadPoint],
    what: str,
    truth: Sequence[bool | None],
    seed: int,
) -> list[JsonObject]:
    """One row a point for what is told apart; none where a side of the split has one class only.

    Args:
        examples: n requests.
        activations: Of the n requests at ``points``.
        points: By layer, then by pilot token.
        what: Name of what is told apart.
        truth: By request, None where it is not known.
        seed: Of split, fitting and bootstrap.
    """
    fit, test = _sides(examples, truth, seed)
    if len({truth[i] for i in fit}) < 2 or len({truth[i] for i in test}) < 2:
        return []
    labels = torch.tensor([bool(value) for value in truth])
    tied = tied_rows(examples)
    rows: list[JsonObject] = []
    for layer in dict.fromkeys(point.layer for point in points):
        found = sweep(
            activations.select(fit),
            labels[fit],
            [point for point in points if point.layer == layer],
            measure_on=(activations.select(test), labels[test]),
            groups=[tied[i] for i in test],
            seed=seed,
        )
        for point, metrics in found.metrics.items():
            rows.append(
                {
                    "told": what,
                    "layer": layer,
                    "pilot": point.position.index,
                    "metric": "AUROC",
                    "better": "higher",
                    "value": metrics.auroc.value,
                    "low": metrics.auroc.low,
                    "high": metrics.auroc.high,
                    "n": len(test),
                }
            )
    return rows


def _sides(
    examples: Sequence[Example], truth: Sequence[bool | None], seed: int
) -> tuple[list[int], list[int]]:
    """Numbers of the requests to fit on and to measure on, among those whose truth is known."""
    parts = grouped_split(examples, {"fit": 0.5, "test": 0.5}, seed=seed)
    to_fit = {example.id for example in parts["fit"]}
    known = [i for i, value in enumerate(truth) if value is not None]
    fit = [i for i in known if examples[i].id in to_fit]
    return fit, [i for i in known if examples[i].id not in to_fit]
