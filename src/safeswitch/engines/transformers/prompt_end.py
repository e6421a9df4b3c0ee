"""Stage 1 on requests as they stand, in one prefill each: no token is written.

Stage 2 is not asked, since it reads a reply; what would wait for it has fired, by stage 1. A switch
that lets stage 2 have the last word therefore flags more here than it refuses where it answers.

A prefill is the start of a reply that the client has written, for the model to continue. The
prompt's last token is then the client's own, of an affirmation say, and hides the request from a
stage 1 that reads there; and a refusal head would continue what the client has written. So such
requests are also read without their prefill. Where stage 1 flags that, the action answers from
there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from safeswitch.activations.record import record
from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.types import REREAD
from safeswitch.engines.requests import ends_in_prefill
from safeswitch.engines.transformers.requests import Request
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.gate import Gate
from safeswitch.switch.session import Session, at_prompt
from safeswitch.switch.switch import Switch


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
    ends = [point for point in points if point.position.kind not in REREAD]
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
    if gate.reread_points and gate.stage1 is not None:
        appended = reread(lm, rows, gate.stage1.prober.appended, gate.reread_points)
        found = Activations({**found.states, **appended.states}, found.masks, texts)
    return found


def judge_without_prefill(
    lm: LanguageModel, requests: Sequence[Request], switch: Switch
) -> list[Request]:
    """The requests, with a decision on each whose prefill hides what stage 1 flags; an action
    answers these from the prompt without the prefill."""
    prefilled = [request for request in requests if ends_in_prefill(request.messages)]
    if not prefilled or not _reads_without(switch.gate):
        return list(requests)
    bare = [request.messages[:-1] for request in prefilled]
    encoded = lm.inputs(bare, room=[request.limit for request in prefilled])
    found = list(requests)
    sessions = judge_prompts(lm, switch.gate, switch.actuator, encoded)
    for request, messages, one, session in zip(prefilled, bare, encoded, sessions, strict=True):
        decision = session.decision
        if not decision.fired:
            continue
        flagged = replace(request, decision=decision)
        if decision.actuator != "none":
            flagged = replace(
                flagged,
                messages=messages,
                ids=one.ids,
                vision=one.vision,
                opened=lm.thinking_opened(messages, one.ids),
            )
        found[request.index] = flagged
    return found


def _reads_without(gate: Gate) -> bool:
    """Whether the gate has a stage 1 that can read without the prefill."""
    return gate.stage1 is not None and not gate.always and not gate.reread_points
