"""The rows that a new last layer is fitted and measured on: those of the calibration, and reviewed
traffic.

Shapes: n rows, calibration rows first, reviewed ones after them. Knows nothing of layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import DataError, FitError
from safeswitch.core.types import Example, Label, Message
from safeswitch.data.reviews import ReviewVerdict
from safeswitch.data.splits import tied_rows
from safeswitch.data.traffic import FRONT, FlaggedText, Traffic
from safeswitch.data.writers import data_hash
from safeswitch.probers.base import Prober
from safeswitch.probers.logistic import Array
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.switch import Switch

FEWEST = 10
"""Reviewed texts of each kind, right and false alarm, below which nothing is fitted."""
READS_ALIKE = 0.05
"""Most that a text's score may differ from its record; more means another model or text."""
_CALIBRATION, _REVIEWED = "calibration", "reviewed"
Reviewed = tuple[FlaggedText, Example]
"""A text that a reviewer has decided on, and what is fitted on of it."""


def calibration_rows(parts: Mapping[str, Sequence[Example]], switch: Switch) -> list[Example]:
    """The rows that a switch was calibrated and validated on, none of which its probers were fitted
    on.

    Args:
        parts: Of the data that it was fitted on, divided as then.
        switch: Its record names each part by its hash.

    Raises:
        DataError: other rows than those of the fit.
    """
    on_record = switch.record.get("data") or {}
    found: list[Example] = []
    for name in ("validation", "calibration"):
        rows = list(parts[name])
        own, wanted = data_hash(rows), (on_record.get(name) or {}).get("hash", "none on record")
        if own != wanted:
            raise DataError(
                f"refit-last: these are not the rows that the switch was fitted on (part {name}: "
                f"hash {own}, the switch has {wanted}); give --data and --without-starter as for "
                "its fit"
            )
        found += rows
    return found


@dataclass(frozen=True, eq=False)
class RefitRows:
    """What is fitted and measured on.

    Args:
        activations: Of n rows.
        labels: ``[n]`` bool, unsafe.
        ordinary: ``[n]`` bool, safe and no look-alike: the threshold is set on these.
        sources: Of each row, calibration or reviewed.
        ties: Of each row; rows of one number stay together.
        times: ``[n]`` how often a text was sent; 1 for calibration rows.
    """

    activations: Activations
    labels: Tensor
    ordinary: Tensor
    sources: Sequence[str]
    ties: Sequence[int]
    times: Array

    def _of(self, source: str, labels: Tensor | None = None) -> NDArray[np.bool_]:
        own: NDArray[np.bool_] = np.asarray([one == source for one in self.sources])
        if labels is not None:
            own &= labels.numpy()
        return own

    @property
    def calibration(self) -> NDArray[np.bool_]:
        """Calibration rows, look-alikes among them."""
        return self._of(_CALIBRATION)

    @property
    def safe(self) -> NDArray[np.bool_]:
        """Ordinary calibration rows."""
        return self._of(_CALIBRATION, self.ordinary)

    @property
    def unsafe(self) -> NDArray[np.bool_]:
        """Unsafe calibration rows."""
        return self._of(_CALIBRATION, self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Texts reviewed as rightly flagged."""
        return self._of(_REVIEWED, self.labels)

    @property
    def false(self) -> NDArray[np.bool_]:
        """Texts reviewed as false alarms."""
        return self._of(_REVIEWED, ~self.labels)

    def counts(self) -> dict[str, int]:
        """Rows of each kind."""
        names = ("safe", "unsafe", "right", "false")
        return {name: int(getattr(self, name).sum()) for name in names}


def reviewed_rows(
    seen: Traffic,
    verdicts: Mapping[str, ReviewVerdict],
    turns: Callable[[str], Sequence[Message] | None],
) -> tuple[list[Reviewed], Counter[str]]:
    """Flagged texts that a reviewer has decided on, as labelled requests; the others counted."""
    found: list[Reviewed] = []
    left: Counter[str] = Counter()
    for one in seen.flagged:
        verdict = verdicts.get(one.text_sha256, "unsure")
        if verdict == "unsure":
            continue
        messages = turns(one.text) if one.text is not None else None
        if one.stage not in FRONT or "stage1" not in one.scores:
            left["flagged by the watch or late"] += 1
        elif messages is None:
            left["without a text, or turns cannot be told"] += 1
        else:
            label: Label = "unsafe" if verdict == "right" else "safe"
            example = Example(one.request_id, tuple(messages), label, source=_REVIEWED)
            found.append((one, example))
    return found, left


def check_enough(reviewed: Sequence[Reviewed], left: Mapping[str, int]) -> None:
    """Raise :class:`FitError` with fewer than ``FEWEST`` texts of a kind."""
    right = sum(example.unsafe for _, example in reviewed)
    false = len(reviewed) - right
    if min(right, false) < FEWEST:
        reasons = "".join(f"; {count} {why}" for why, count in left.items())
        raise FitError(
            f"refit-last: needs at least {FEWEST} reviewed texts of each kind; got {right} right "
            f"and {false} false alarms{reasons}. Review more, or move the threshold alone (without "
            "--refit-last)"
        )


def read_rows(
    engine: ReadingEngine,
    prober: Prober,
    calibration: Sequence[Example],
    reviewed: Sequence[Reviewed],
    left: Counter[str],
) -> RefitRows:
    """Read every row once; reviewed ones that read otherwise than they were recorded are left out."""
    unsafe = sum(example.unsafe for example in calibration)
    if not unsafe or not any(example.ordinary for example in calibration):
        raise FitError(
            "refit-last: needs unsafe calibration rows, and safe ones that are no look-alikes"
        )
    examples = [*calibration, *(example for _, example in reviewed)]
    _, activations = engine.collect(examples, prober.points, max_new_tokens=0)
    recorded = torch.tensor([one.scores["stage1"] for one, _ in reviewed])
    again = prober.score(activations).float().cpu()[len(calibration) :]
    alike = (again - recorded).abs() <= READS_ALIKE
    if not bool(alike.all()):
        left["read otherwise than recorded"] += int((~alike).sum())
    kept = [pair for pair, same in zip(reviewed, alike.tolist(), strict=True) if same]
    check_enough(kept, left)
    mask = torch.cat([torch.ones(len(calibration), dtype=torch.bool), alike])
    examples = [example for example, own in zip(examples, mask.tolist(), strict=True) if own]
    return RefitRows(
        activations.select(mask),
        torch.tensor([example.unsafe for example in examples]),
        torch.tensor([example.ordinary for example in examples]),
        [_CALIBRATION] * len(calibration) + [_REVIEWED] * len(kept),
        tied_rows(examples),
        np.asarray([1.0] * len(calibration) + [float(one.times) for one, _ in kept]),
    )
