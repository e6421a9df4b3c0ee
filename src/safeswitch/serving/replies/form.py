"""What all replies have in common: what a client may see of a decision, and the methods of a
form."""

from __future__ import annotations

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import ChoiceDecision, Context, Refusal

FIELD = "safeswitch"
"""Field of a body that holds a client's options for the guard, and of a reply that holds the
decision."""


def refused(decided: ChoiceDecision) -> bool:
    """Whether the request was refused because the gate fired."""
    return decided.decision.refuses and decided.policy == "enforce"


def public(decided: ChoiceDecision, scores: bool, kinds: bool = False) -> JsonObject:
    """What a client may see of a decision.

    Args:
        decided: What was decided.
        scores: Whether the client may see scores, and what lets one guess at them.
        kinds: Whether it may see which kind of harm is seen; whoever may see scores, or is to be
            told by the policy (``annotate``), may.
    """
    d = decided.decision
    changed = d.fired and decided.policy == "enforce" and d.actuator != "none"
    shown: JsonObject = {"fired": d.fired, "switched": changed}
    if d.severity and (scores or kinds or (d.fired and d.act == "annotate")):
        shown |= {"category": d.category, "severity": d.severity}
    if scores:
        shown |= {
            "stage": d.stage,
            "scores": dict(d.scores),
            "thresholds": dict(d.thresholds),
            "token_index": d.token_index,
        }
        shown |= {"categories": dict(d.categories)} if d.categories else {}
        shown |= {"act": d.act} if d.act else {}
    return shown | {
        "policy": decided.policy,
        "bundle": decided.bundle,
        "bundle_id": decided.bundle_id,
    }


class Form:
    """A kind of reply, for one request. Each route's form says where decisions and refusals stand
    in it.

    Args:
        context: Of the request; decisions and refusals are read from it while the reply leaves.
        scores: Whether the client may see scores.
        kinds: Whether it may see kinds of harm without them.
    """

    names_events = False
    """Whether a stream's events are named by their ``type``."""

    def __init__(self, context: Context, scores: bool, kinds: bool = False) -> None:
        self.context, self._scores, self._kinds = context, scores, kinds

    def whole(self, reply: JsonObject) -> None:
        """Put decisions and refusals into a reply that is not streamed."""
        raise NotImplementedError

    def event(self, event: JsonObject) -> list[JsonObject]:
        """The events of a stream that leave in the place of ``event``."""
        raise NotImplementedError

    def rest(self) -> list[JsonObject]:
        """What is still to be sent when a stream ends."""
        return []

    def failed(self, error: JsonObject) -> JsonObject:
        """The event of a stream that tells of an error, from OpenAI's body of it."""
        return error

    def describe(self, decided: ChoiceDecision) -> JsonObject:
        """What this client may see of a decision."""
        return public(decided, self._scores, self._kinds)

    def last_decision(self) -> ChoiceDecision | None:
        """The decision on the reply as a whole, on routes with one choice: the one that was decided
        last."""
        return next(reversed(self.context.decisions.values()), None)

    def last_refusal(self) -> Refusal | None:
        """The whole refusal on routes with one choice; None where there is none, or not yet."""
        refusal = next(reversed(self.context.refusals.values()), None)
        return refusal if refusal is not None and refusal.ended else None


def add_tokens(usage: object, written: str, tokens: int) -> None:
    """Count a refusal's tokens in a reply's ``usage``, whose field ``written`` holds what the
    engine's reply has."""
    if not isinstance(usage, dict):
        return
    for name in (written, "total_tokens"):
        if isinstance(usage.get(name), int):
            usage[name] += tokens
