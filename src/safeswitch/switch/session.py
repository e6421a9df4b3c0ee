"""One request's way through a gate, kept for both engines: readings go in, decisions come out.

A session is replaced, never changed: each function below takes the sessions of some requests and
returns what they are after one reading. An engine that has to read again (a chunk of a prompt, a
preempted request) therefore continues from the session as it was before that reading.

    at_prompt ──┬── fired
                ├── pending ── at_pilot ──┬── fired
                │      └─────── at_watch ─┤
                │                         └── cleared
                └── cleared ── at_watch and at_late, as often as they are due ── fired

Beside what decides, it is looked which kind of harm is in a request, which never changes whether
the gate fires; a policy (:mod:`safeswitch.switch.rules`) says by that kind what is then done.
Knows nothing of models, batches, or tokens but their count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from safeswitch.activations.states import Activations
from safeswitch.core.types import Decision
from safeswitch.probers.harms import UNREAD, Seen
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.gate import Gate, Reading
from safeswitch.switch.rules import Rule, action_for


@dataclass(frozen=True, eq=False)
class Session:
    """What is known of one request.

    Args:
        gate: What decides.
        action: What is in force on the request once it has fired; ``NoAction`` where the gate only
            observes.
        decision: What has been decided so far.
        pending: Whether the request waits for stage 2.
        stage1: Its score at stage 1, for the product rule; 0 where stage 1 has not spoken.
        fraction: How much of a refusal head is in force on it once it has fired, in [0, 1].
        relieved: Whether a two-sided action works on it in the opposite direction, as steering
            does that makes refusals of plainly safe requests less likely: stage 1 has cleared it,
            and is sure.
        seen: What kinds of harm are seen in it, where it may still fire; None where nobody looked.
        rule: The rule of the gate's policy that holds for it, once stage 1 has flagged it.
    """

    gate: Gate
    action: Actuator
    decision: Decision
    pending: bool = False
    stage1: float = 0.0
    fraction: float = 1.0
    relieved: bool = False
    seen: Seen | None = None
    rule: Rule | None = None

    @classmethod
    def begin(cls, gate: Gate, action: Actuator) -> Session:
        """The session of a request of which nothing has been read."""
        severity = "allow" if gate.harms is not None else ""
        decision = Decision(
            False, "none", thresholds=gate.thresholds(), rule=gate.rule, severity=severity
        )
        return cls(gate, action, decision)

    @property
    def acts(self) -> bool:
        """Whether something is done with the request: it has fired, and not only on record."""
        return self.decision.fired and self.action.place != "none"

    def lost(self, why: str, fed: int) -> Session:
        """After ``fed`` reply tokens, where a reading cannot be made: the failure rule decides."""
        return self.after("error", fed, fired=self.gate.fail == "closed", error=why)

    def after(
        self,
        stage: str,
        fed: int,
        *,
        fired: bool,
        pending: bool = False,
        score: float | None = None,
        error: str | None = None,
        seconds: float = 0.0,
    ) -> Session:
        """After one reading of ``stage`` at ``fed`` reply tokens.

        Args:
            stage: Who has read.
            fed: When, in reply tokens.
            fired: What it decided.
            pending: Whether stage 2 is still to speak.
            score: What it said; None where no prober was asked, or where it failed.
            error: Why it failed. Once there is an error, it stays on record.
            seconds: What the reading took, for ``latency_s``.
        """
        old, action, act = self.decision, self.action, ""
        if fired and self.gate.rules is not None:
            act = self._act(stage, error)
            fired, action = act != "allow", action_for(act, action)
        if error is not None:
            name = "error"
        elif self.gate.always:
            name = "always"
        else:
            name = stage if fired or score is not None else "none"
        decision = replace(
            old,
            fired=fired,
            stage=name,
            scores=old.scores if score is None else {**old.scores, stage: score},
            token_index=fed,
            actuator=action.kind if fired else old.actuator,
            latency_s=old.latency_s + seconds,
            error=error or old.error,
            act=act or old.act,
        )
        if fired and self.gate.harms is not None:
            decision = _with_seen(decision, self.seen or UNREAD)
        first = score if stage == "stage1" and score is not None else self.stage1
        return replace(self, action=action, decision=decision, pending=pending, stage1=first)

    def _act(self, stage: str, error: str | None) -> str:
        """What the policy has done with the request now that ``stage`` fires; what cannot be read is
        refused."""
        if error is not None or self.gate.always or self.gate.rules is None:
            return "refuse"
        # the rule was found by stage 1's score, of which later stages know nothing
        if self.rule is not None and stage in ("stage1", "stage2"):
            return self.rule.act
        return self.gate.rules.strictest(self.seen).act


def at_prompt(
    sessions: Sequence[Session],
    activations: Activations,
    started: float,
    final: Sequence[bool] = (),
) -> list[Session]:
    """Sessions after the reading at the prompt's end.

    Args:
        sessions: n sessions of one gate, of which nothing has been read.
        activations: States and texts of the n requests.
        started: ``time.perf_counter()`` when the reading began, for ``latency_s``.
        final: For each request, whether stage 2 is not to be asked, since the reply that it would
            read is not the model's own. What would wait for it has then fired, by stage 1.
    """
    gate = sessions[0].gate
    reading = gate.at_prompt(activations)
    sessions, reading = _look(sessions, reading, activations)
    if any(final):
        last = torch.tensor(list(final))
        fired = reading.fired | (reading.pending & last)
        reading = replace(reading, fired=fired, pending=reading.pending & ~last)
    found = _after("stage1", sessions, reading, [0] * len(sessions), started)
    if not _asks(gate, "stage1"):
        return found
    return [_relieved(session, reading, row) for row, session in enumerate(found)]


def at_pilot(
    sessions: Sequence[Session], activations: Activations, fed: Sequence[int], started: float
) -> list[Session]:
    """Pending sessions of one gate after stage 2 has spoken, at ``fed`` reply tokens each."""
    first = torch.tensor([session.stage1 for session in sessions])
    reading = sessions[0].gate.at_pilot(activations, first)
    return _after("stage2", sessions, reading, fed, started)


def at_watch(
    sessions: Sequence[Session], activations: Activations, fed: Sequence[int], started: float
) -> list[Session]:
    """Sessions of one gate after a reading of the watch, at ``fed`` reply tokens each.

    What waits for stage 2 keeps waiting, unless the watch has fired on it.
    """
    reading = sessions[0].gate.at_watch(activations)
    waiting = torch.tensor([session.pending for session in sessions])
    reading = replace(reading, pending=waiting & ~reading.fired)
    return _after("watch", sessions, reading, fed, started)


def at_late(
    sessions: Sequence[Session],
    activations: Activations,
    places: Sequence[tuple[int, int]],
    started: float,
) -> list[Session]:
    """Sessions of one gate after the late readings of their replies, at several lengths each.

    A request fires at the first length at which the late stage says so. It keeps the highest score
    up to there, since one threshold is calibrated for all lengths.

    Args:
        sessions: m sessions.
        activations: States and texts of n readings.
        places: For each reading, the place of its session and its count of reply tokens; the counts
            of one session rise.
        started: ``time.perf_counter()`` when the readings began; the time is shared evenly by the
            sessions that were read, once each.
    """
    reading = sessions[0].gate.at_late(activations)
    found = list(sessions)
    unpaid = {place for place, _ in places}
    seconds = (time.perf_counter() - started) / len(unpaid)
    for row, (place, fed) in enumerate(places):
        session = found[place]
        if session.decision.fired:
            continue
        error = reading.errors[row]
        highest = max(float(reading.scores[row]), session.decision.scores.get("late", -1.0))
        first = place in unpaid
        unpaid.discard(place)
        found[place] = session.after(
            "late",
            fed,
            fired=bool(reading.fired[row]),
            score=None if error else highest,
            error=error,
            seconds=seconds if first else 0.0,
        )
    return found


def _look(
    sessions: Sequence[Session], reading: Reading, activations: Activations
) -> tuple[Sequence[Session], Reading]:
    """See what kinds of harm are in requests that may fire, and clear those that stage 1 flags but
    no rule of the policy acts on.

    Nothing is read of requests that are decided and have not fired.
    """
    gate = sessions[0].gate
    if gate.harms is None and gate.rules is None:
        return sessions, reading
    flagged = reading.fired | reading.pending
    later = gate.watch is not None or gate.late is not None
    seen = gate.sees(activations, torch.ones_like(flagged) if later else flagged)
    found = [replace(session, seen=one) for session, one in zip(sessions, seen, strict=True)]
    if gate.rules is None or not _asks(gate, "stage1"):
        return found, reading
    cleared = torch.zeros_like(flagged)
    for row in flagged.nonzero().flatten().tolist():
        # what stage 1 could not read is not the policy's to clear
        if reading.errors[row] is not None:
            continue
        rule = gate.rules.at(seen[row], float(reading.scores[row]))
        cleared[row] = rule is None or rule.act == "allow"
        found[row] = _under(found[row], rule)
    return found, replace(
        reading, fired=reading.fired & ~cleared, pending=reading.pending & ~cleared
    )


def _under(session: Session, rule: Rule | None) -> Session:
    """The session with the rule that holds for it, and its threshold on record; what it has done is
    on record once it is, which for ``allow`` is now."""
    if rule is None:
        return session
    decision = session.decision
    if rule.act == "allow":
        decision = replace(decision, act=rule.act)
    if rule.threshold is not None:
        held = {**decision.thresholds, "stage1": rule.threshold}
        decision = replace(decision, thresholds=held)
    return replace(session, rule=rule, decision=decision)


def _with_seen(decision: Decision, seen: Seen) -> Decision:
    return replace(
        decision, category=seen.category, categories=seen.categories, severity=seen.severity
    )


def _after(
    stage: str,
    sessions: Sequence[Session],
    reading: Reading,
    fed: Sequence[int],
    started: float,
) -> list[Session]:
    """Sessions after a reading with one row for each; its time is shared evenly by them.

    Where no prober was asked there is no score to record, and the whole action is in force.
    """
    scored = _asks(sessions[0].gate, stage)
    seconds = (time.perf_counter() - started) / len(sessions)
    scores, fired = reading.scores.tolist(), reading.fired.tolist()
    found = []
    for row, session in enumerate(sessions):
        error = reading.errors[row]
        after = session.after(
            stage,
            fed[row],
            fired=fired[row],
            pending=bool(reading.pending[row]),
            score=scores[row] if scored and not error else None,
            error=error,
            seconds=seconds,
        )
        found.append(_with_fraction(after, reading, row) if scored and fired[row] else after)
    return found


def _asks(gate: Gate, stage: str) -> bool:
    """Whether a prober's score is part of what the gate decides at ``stage``."""
    return not gate.always and not (stage == "stage1" and gate.stage1 is None)


def _with_fraction(session: Session, reading: Reading, row: int) -> Session:
    """A session that has just fired, with the fraction of the head that its score calls for."""
    fraction = session.action.fraction(reading.scores[row : row + 1])
    return session if fraction is None else replace(session, fraction=float(fraction))


def _relieved(session: Session, reading: Reading, row: int) -> Session:
    """The session, marked where a two-sided action leads the request the other way."""
    sure = session.action.relieves(reading.scores[row : row + 1])
    if sure is None or not bool(sure) or session.decision.fired or session.pending:
        return session
    decision = replace(session.decision, actuator=session.action.kind)
    return replace(session, decision=decision, relieved=True)
