"""Stage 1 on requests as they stand, in one prefill each: no token is written.

Stage 2 is not asked, since it reads a reply; what would wait for it has fired, by stage 1. A switch
that lets stage 2 have the last word therefore flags more here than it refuses where it answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from safeswitch.activations.record import record
from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.types import APART
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.gate import Gate
from safeswitch.switch.session import Session, at_prompt


def judge_prompts(
    lm: LanguageModel, gate: Gate, actuator: Actuator, encoded: Sequence[Encoded]
) -> list[Session]:
    """Sessions of n requests after stage 1, none of them pending.

    Args:
        lm: The model.
        gate: For which :attr:`Gate.screens` holds.
        actuator: What is done to those that fire.
        encoded: Inputs of the requests, each ending where a reply begins.

    Raises:
        ActivationError: states that are not finite.
    """
    started = time.perf_counter()
    return at_prompt(
        [Session.begin(gate, actuator)] * len(encoded),
        _read(lm, gate, encoded),
        started,
        final=[True] * len(encoded),
    )


def _read(lm: LanguageModel, gate: Gate, encoded: Sequence[Encoded]) -> Activations:
    """What stage 1 and the reader of kinds of harm read of n requests."""
    rows = [one.ids for one in encoded]
    texts = tuple(lm.prompt_text(row) for row in rows)
    points = gate.stage1.prober.points if gate.stage1 is not None else ()
    if gate.harms is not None:
        points = tuple(dict.fromkeys([*points, *gate.harms.points]))
    ends = [point for point in points if point.position.kind not in APART]
    found = Activations({}, {}, texts)
    if ends:
        found = record(
            lm,
            rows,
            [len(row) for row in rows],
            ends,
            texts=texts,
            visions=[one.vision for one in encoded],
            dtype=torch.float32,
        )
    if gate.apart_points and gate.stage1 is not None:
        apart = reread(lm, rows, gate.stage1.prober.appended, gate.apart_points)
        found = Activations({**found.states, **apart.states}, found.masks, texts)
    return found
