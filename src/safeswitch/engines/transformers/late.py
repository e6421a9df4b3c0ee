"""The late reading: finished replies are read again at several lengths, with tokens appended.

Knows nothing of decoding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.session import Session, at_late


def late_lengths(count: int, every: int) -> list[int]:
    """Reply tokens after which a reply of ``count`` tokens is read: every few, and at its end."""
    return [*range(every, count, every), *([count] if count else [])]


def judge_late(
    lm: LanguageModel,
    sessions: Sequence[Session],
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    texts: Sequence[str],
) -> list[Session]:
    """Sessions after the late reading; those that have fired before are not read, and stay.

    Args:
        lm: The model.
        sessions: Of n requests, under one gate with a ``late`` stage.
        prompts: Token ids of each request.
        replies: Token ids of each reply, without its end token.
        texts: Plain text of each request.
    """
    gate = sessions[0].gate
    assert gate.late is not None
    started = time.perf_counter()
    places = []
    for i, reply in enumerate(replies):
        if not sessions[i].decision.fired:
            places += [(i, length) for length in late_lengths(len(reply), gate.late_every)]
    if not places:
        return list(sessions)
    rows = [[*prompts[i], *replies[i][:length]] for i, length in places]
    prober = gate.late.prober
    states = reread(lm, rows, prober.appended, prober.points).states
    activations = Activations(states, {}, tuple(texts[i] for i, _ in places))
    return at_late(sessions, activations, places, started)
