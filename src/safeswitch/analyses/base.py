"""What an analysis is, and the table of analyses.

An analysis is a function from a finished run to plain JSON. Knows nothing of logs or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from safeswitch.core.registry import Registry
from safeswitch.core.types import Example
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.switch.switch import Switch

Analysis = Callable[["FinishedRun"], Any]
"""Takes what it looks into and returns plain JSON: a mapping or a list."""

ANALYSES: Registry[Analysis] = Registry("analysis", "safeswitch.analyses", "safeswitch.analyses")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What an analysis looks into: requests of a finished run, and the model and switch that
    answered them.

    Args:
        engine: The model that the run was made with.
        switch: The switch of the method that is looked at; its gate reads activations.
        examples: n labelled requests, drawn at random from the run.
        fired: Whether the gate fired on each request.
        complied: Whether the base model complied with each request, None where that is not known.
        how: How activations are shown in two dimensions, ``pca`` or ``umap``.
        strips: Number of example conversations to show.
        seed: Of everything that is drawn, split and fitted.
    """

    engine: TransformersEngine
    switch: Switch
    examples: Sequence[Example]
    fired: Sequence[bool]
    complied: Sequence[bool | None]
    how: str = "pca"
    strips: int = 6
    seed: int = 0
