"""The late reading: finished replies are read again at several lengths, with tokens appended. Knows nothing of decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.types import Decision
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.gate import Gate


def late_lengths(count: int, every: int) -> list[int]:
    """Reply tokens after which a reply of ``count`` tokens is read: every few, and at its end."""
    return [*range(every, count, every), *([count] if count else [])]


def judge_late(
    lm: LanguageModel,
    gate: Gate,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    texts: Sequence[str],
    decisions: Sequence[Decision],
    actuator: str,
) -> list[Decision]:
    """New decisions: a request fires at the first length at which the late stage says so; those that fired stay as they are.

    Args:
        lm: The model.
        gate: A gate with a ``late`` stage.
        prompts: Token ids of each request.
        replies: Token ids of each reply, without its end token.
        texts: Plain text of each request.
        decisions: What was decided so far.
        actuator: Name of the action, for the record.
    """
    assert gate.late is not None
    start = time.perf_counter()
    places = [
        (i, t) for i, reply in enumerate(replies) if not decisions[i].fired for t in late_lengths(len(reply), gate.late_every)
    ]
    if not places:
        return list(decisions)
    prober = gate.late.prober
    acts = reread(lm, [[*prompts[i], *replies[i][:t]] for i, t in places], prober.appended, prober.points)
    verdict = gate.at_late(Activations(acts.states, {}, tuple(texts[i] for i, _ in places)))
    found = list(decisions)
    share = (time.perf_counter() - start) / len({i for i, _ in places})
    for place, (i, t) in enumerate(places):
        old, error = found[i], verdict.errors[place]
        if old.fired:
            continue
        fired = bool(verdict.fired[place])
        score = float(verdict.scores[place])
        highest = score if error or old.scores.get("late", -1.0) < score else old.scores["late"]
        found[i] = replace(
            old, fired=fired, stage="error" if error else "late",
            scores=dict(old.scores) if error else {**old.scores, "late": highest},
            token_index=t, actuator=actuator if fired else old.actuator, error=error or old.error,
        )
    judged = {i for i, _ in places}
    return [replace(d, latency_s=d.latency_s + share) if i in judged else d for i, d in enumerate(found)]
