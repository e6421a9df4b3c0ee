"""What all replies share: who is told what of a verdict, and the shape of a form."""

from __future__ import annotations

from typing import Any

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import Context, Refusal, Verdict

FIELD = "safeswitch"
"""Field of a body that holds a client's wishes, and of a reply that holds the verdict."""


def refused(verdict: Verdict) -> bool:
    """Whether the request was refused because the gate fired."""
    return verdict.decision.refuses and verdict.policy == "enforce"


def public(verdict: Verdict, scores: bool, kinds: bool = False) -> JsonObject:
    """What a client is told of a verdict.

    Args:
        verdict: What was decided.
        scores: Whether the client may see scores, and what lets one guess at them.
        kinds: Whether it may see which kind of harm is seen; whoever may see scores, or is to be
            told by the policy (``annotate``), may.
    """
    d = verdict.decision
    changed = d.fired and verdict.policy == "enforce" and d.actuator != "none"
    told: JsonObject = {"fired": d.fired, "switched": changed}
    if d.severity and (scores or kinds or d.act == "annotate"):
        told |= {"category": d.category, "severity": d.severity}
    if scores:
        told |= {
            "stage": d.stage,
            "scores": dict(d.scores),
            "thresholds": dict(d.thresholds),
            "token_index": d.token_index,
        }
        told |= {"categories": dict(d.categories)} if d.categories else {}
        told |= {"act": d.act} if d.act else {}
    return told | {
        "policy": verdict.policy,
        "bundle": verdict.bundle,
        "bundle_id": verdict.bundle_id,
    }


class Form:
    """A kind of reply, for one request. Each route's form says where verdicts and refusals stand in
    it.

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
        """Put verdicts and refusals into a reply that is not streamed."""
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

    def told(self, verdict: Verdict) -> JsonObject:
        """What this client is told of a verdict."""
        return public(verdict, self._scores, self._kinds)

    def last_verdict(self) -> Verdict | None:
        """The verdict on the reply as a whole, on routes with one choice: the one that was decided
        last."""
        return next(reversed(self.context.decisions.values()), None)

    def last_refusal(self) -> Refusal | None:
        """The whole refusal on routes with one choice; None where there is none, or not yet."""
        refusal = next(reversed(self.context.refusals.values()), None)
        return refusal if refusal is not None and refusal.ended else None


def add_tokens(usage: Any, written: str, tokens: int) -> None:
    """Count a refusal's tokens in a reply's ``usage``, whose field ``written`` holds what the
    engine's reply has."""
    if not isinstance(usage, dict):
        return
    for name in (written, "total_tokens"):
        if isinstance(usage.get(name), int):
            usage[name] += tokens
