"""Prefills: the start of a reply that the client has written, for the model to continue.

The prompt's last token is then the client's own, of an affirmation say, and hides the request from
a stage 1 that reads there; and a refusal head would continue what the client has written. So stage
1 also reads the conversation without the prefill. Where it flags that, the action answers from
there. Stage 2 is not asked, since it reads how the model's own reply begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from safeswitch.engines.requests import ends_in_prefill
from safeswitch.engines.transformers.prompt_end import judge_prompts
from safeswitch.engines.transformers.requests import Request
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.gate import Gate
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
    return gate.stage1 is not None and not gate.always and not gate.apart_points
