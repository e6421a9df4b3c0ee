"""Prefills: the start of a reply that the client has written, for the model to continue.

The prompt's last token is then the client's own, of an affirmation say, and hides the request from
a stage 1 that reads there; and a refusal head would continue what the client has written. So stage
1 also reads the conversation without the prefill. Where it flags that, the action answers from
there. Stage 2 is not asked, since it reads how the model's own reply begins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from safeswitch.activations.record import record
from safeswitch.core.types import Decision
from safeswitch.engines.requests import ends_in_prefill
from safeswitch.engines.transformers.requests import Request
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Encoded
from safeswitch.switch.gate import Gate
from safeswitch.switch.session import Session, at_prompt
from safeswitch.switch.switch import Switch


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
    decisions = _judge(lm, switch, encoded)
    for request, messages, one, decision in zip(prefilled, bare, encoded, decisions, strict=True):
        if not decision.fired:
            continue
        flagged = replace(request, decision=decision)
        if switch.actuator.place != "none":
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
    return gate.stage1 is not None and not gate.always and not gate.apart_points


def _judge(lm: LanguageModel, switch: Switch, encoded: Sequence[Encoded]) -> list[Decision]:
    """What stage 1 decides on encoded conversations without their prefill."""
    started = time.perf_counter()
    rows = [one.ids for one in encoded]
    activations = record(
        lm,
        rows,
        [len(row) for row in rows],
        switch.gate.prompt_points,
        texts=[lm.prompt_text(row) for row in rows],
        visions=[one.vision for one in encoded],
        dtype=torch.float32,
    )
    sessions = [Session.begin(switch.gate, switch.actuator)] * len(rows)
    judged = at_prompt(sessions, activations, started, final=[True] * len(rows))
    return [session.decision for session in judged]
