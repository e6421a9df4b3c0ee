"""What a chat of the page is told of one reply, event by event: JSON objects with a ``type``.

On every server, ``shown``: the next text that may be seen, on a server that traces the text of one
token. ``read``: a stage has spoken. ``rollback``: what was written and not shown is dropped, after
``at`` reply tokens where no ``written`` has told of them. ``end``: the reply is whole, with the
decision. An event with ``error`` instead of a type says that the reply has broken off.

Where the server traces, also those of :class:`safeswitch.serving.transformers.trace.TracedChoice`.
"""

from __future__ import annotations

from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision
from safeswitch.engines.context import ChoiceDecision
from safeswitch.serving.replies.form import public

_ORDER = ("stage1", "stage2", "watch", "late")
"""Stages as they are asked."""


def read_event(
    decision: Decision, stage: str, at: int, *, fired: bool, pending: bool
) -> JsonObject:
    """The event of one reading.

    Args:
        decision: With the score of ``stage``, and the thresholds that were in force.
        stage: Who has read.
        at: When, in reply tokens.
        fired: Whether the gate fired on it.
        pending: Whether stage 2 is still to speak.
    """
    bars = decision.thresholds
    return {
        "type": "read",
        "stage": stage,
        "at": at,
        "score": decision.scores[stage],
        "threshold": bars.get(stage, bars.get("product")),
        "fired": fired,
        "pending": pending,
    }


def read_events(decision: Decision, pilot: int) -> list[JsonObject]:
    """The readings that a whole decision tells of: the last one of each stage.

    Args:
        decision: The decision.
        pilot: Reply tokens that stage 2 reads, of a reply that is as long.
    """
    last = decision.token_index
    places = {"stage1": 0, "stage2": min(pilot, last), decision.stage: last}
    found: list[JsonObject] = []
    for stage in _ORDER:
        if stage in decision.scores:
            fired = decision.fired and stage == decision.stage
            waits = stage == "stage1" and "stage2" in decision.scores
            at = places.get(stage, last)
            found.append(read_event(decision, stage, at, fired=fired, pending=waits))
    return found


def rollback_events(decided: ChoiceDecision) -> list[JsonObject]:
    """The event of what was rolled back, where the decision says that something was."""
    at = decided.decision.token_index
    return [{"type": "rollback", "at": at}] if public(decided, True)["switched"] and at else []


def end_event(finish_reason: str | None, decided: ChoiceDecision | None) -> JsonObject:
    """The event that ends a reply; without a decision nothing has guarded it."""
    decision = public(decided, True) if decided is not None else None
    return {"type": "end", "finish_reason": finish_reason, "decision": decision}
