"""The gate at work on requests that come and go: one row per request, in whatever batch it sits.

A request's life in the worker, by the mode in which the front end sends it:

    enforce ── stage 1 ──┬── fired ───── the refusal head, from the first token on
                         ├── pending ─── rolled back, comes again as ``pilot``
                         └── cleared ─── its reply ── the watch ──┬── fired: rolled back
                                                                  └── ended
    pilot ──── stage 1 ──┬── pending ─── pilot tokens ── stage 2 ─┬── fired: rolled back
                         │                                        └── cleared: its reply, as above
                         └── else as ``enforce``
    score ──── stage 1, which speaks alone: nothing is written
    judge ──── a reply that has ended: its last reading ──────────┬── fired: rolled back
                                                                  └── cleared
    refuse ─── the refusal head, from the first token on; comes of every other roll-back
    observe ── read as under ``enforce`` and ``pilot``; nothing is changed, nobody rolled back

To be rolled back, a row is put on the list of those to be stopped; the front end then sends it
again. A pending row is rolled back as well: the front end sees tokens alone, and so learns that it
must hold the reply until stage 2 has spoken. A constrained
row is not given the refusal head in its own run, where the client's constraints would bend the
refusal: whatever stage 1 does not clear is rolled back and refused.

What was decided is kept by :mod:`safeswitch.switch.session`, as for the other engine. Here every
row has its own count of reply tokens, and a reading may have to be done again: a chunk of a prompt,
or a request that was preempted, shows the same count twice, and the last reading of a count is the
one that holds. A reply that the front end ends (a stop string) has been read past its end by then,
so what was known at every count is kept for a while. Knows nothing of vLLM.

Letters: n rows of a step, d hidden size.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import check_choice
from safeswitch.core.types import Decision, ReadPoint
from safeswitch.engines.context import SCORE
from safeswitch.engines.vllm.settings import Task
from safeswitch.switch.actuators.base import Actuator, HeadActuator, NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.rules import Rules
from safeswitch.switch.session import Session, at_pilot, at_prompt, at_watch

Standing = Literal["pending", "refusing", "clear"]
Read = Callable[[ReadPoint], Tensor]
"""States ``[n, d]`` of the whole batch at a point's site, or their means over a prompt's tokens."""
_READ_ONLY = ("observe", SCORE)
"""Modes in which nothing is changed."""
_KEPT = 8192
"""Requests that are remembered once they have left the batch. A front end takes its decisions soon;
one that has died never does."""
_MOST_RULES = 1024
"""Most sets of rules that are kept: one for each client and bundle, until thresholds change."""
_LAG = 64
"""Tokens by which the workers may be ahead of the front end without anything being forgotten."""


@dataclass(frozen=True, eq=False)
class Tenant:
    """One bundle on the engine: its gate, and the head that acts (None when it only observes)."""

    name: str
    gate: Gate
    head: HeadActuator | None
    id: str = ""
    """Fingerprint of the switch."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of one request: its session, and the states that stage 2 is still to read."""

    session: Session
    prompt: Mapping[ReadPoint, Tensor] = field(default_factory=dict)
    pilot: Mapping[ReadPoint, Tensor] = field(default_factory=dict)


class Row:
    """One request in the worker.

    Attributes:
        task: What is to be done with it now; replaced when the front end sends it again.
        tenant: Its bundle, as it was when the request came first.
        live: Whether it is in the batch.
    """

    def __init__(self, task: Task, tenant: Tenant) -> None:
        self.task, self.tenant = task, tenant
        self.live = False
        action: Actuator = NoAction()
        if tenant.head is not None and task.mode not in _READ_ONLY:
            action = tenant.head
        self._known = [(-1, Known(Session.begin(tenant.gate, action)))]

    @property
    def known(self) -> Known:
        """What is known now."""
        return self._known[-1][1]

    @property
    def session(self) -> Session:
        """What is decided now."""
        return self.known.session

    @property
    def speaks_once(self) -> bool:
        """Whether stage 2 is not asked: there is no reply, or it is not the model's own."""
        if self.task.mode == SCORE:
            return True
        watched = self.task.mode == "observe" and self.tenant.gate.stage1 is not None
        return self.task.constrained and (watched or self.task.mode == "enforce")

    @property
    def bent(self) -> bool:
        """Whether this run's logits are bent by constraints that no refusal may come under."""
        enforced = self.task.mode == "enforce" and self.tenant.head is not None
        return enforced and self.task.constrained

    def before(self, fed: int) -> Known:
        """What was known before the reading at ``fed`` reply tokens.

        Where that is forgotten, what the first reading that is still kept has said.
        """
        for at, known in reversed(self._known):
            if at < fed:
                return known
        return self._known[0][1]

    def enter(self, fed: int) -> None:
        """Begin a reading at ``fed`` reply tokens: readings there and further on are undone.

        They were of a prompt that was not whole yet, or of tokens that are being computed anew.
        """
        while len(self._known) > 1 and self._known[-1][0] >= fed:
            self._known.pop()

    def know(self, fed: int, known: Known) -> None:
        """Put on record what the reading at ``fed`` reply tokens has said."""
        if self._known[-1][0] >= fed:
            self._known.pop()
        self._known.append((fed, known))
        while len(self._known) > 1 and self._known[1][0] < fed - _LAG:
            self._known.pop(0)


class Due(NamedTuple):
    """A row in a sampling step: its place in the batch, and its count of reply tokens."""

    place: int
    row: Row
    fed: int

    @property
    def session(self) -> Session:
        return self.row.session

    @property
    def ended(self) -> bool:
        """Whether its reply has ended, so that no further token will be read."""
        return self.row.task.mode == "judge"


class Guard:
    """All requests of one worker.

    Args:
        tenants: Bundles by name.
        top: Number of the layer after the final norm.
    """

    def __init__(self, tenants: Mapping[str, Tenant], top: int) -> None:
        self.tenants = dict(tenants)
        self.top = top
        self.rows: OrderedDict[str, Row] = OrderedDict()
        self._strays = 0
        self._ruled: dict[tuple[Tenant, str], Tenant] = {}

    def add(self, task: Task) -> Row:
        """The row of a request that enters the batch, or comes back to it."""
        row = self.rows.get(task.id)
        if row is None:
            row = self.rows[task.id] = Row(task, self._tenant(task))
        row.task, row.live = task, True
        self.rows.move_to_end(task.id)
        self._forget_oldest()
        return row

    def _tenant(self, task: Task) -> Tenant:
        """The tenant of a request: its bundle, under the rules that it comes with.

        Requests of equal rules share one, so that they are scored together.
        """
        tenant = self.tenants[task.bundle]
        if not task.rules:
            return tenant
        found = self._ruled.get((tenant, task.rules))
        if found is None:
            if len(self._ruled) >= _MOST_RULES:
                self._ruled.clear()
            rules = Rules.parse(json.loads(task.rules))
            found = replace(tenant, gate=tenant.gate.with_rules(rules))
            self._ruled[tenant, task.rules] = found
        return found

    def _forget_oldest(self) -> None:
        for key in list(self.rows)[: max(0, len(self.rows) - _KEPT)]:
            if not self.rows[key].live:
                del self.rows[key]

    def unstamped(self) -> Task:
        """The task of a request that no front end has spoken for: guarded by the first bundle."""
        self._strays += 1
        return Task(f"stray-{self._strays}", next(iter(self.tenants)), "enforce")

    def standing(self, counts: Mapping[str, int | None]) -> dict[str, Standing]:
        """How requests stood before the reading at a count of reply tokens (None: the last one).

        Waiting for stage 2 or about to be rolled back, refusing since their prompt, or clear;
        unknown ids are left out.
        """
        found: dict[str, Standing] = {}
        for key, fed in counts.items():
            if key in self.rows:
                found[key] = _standing(self.rows[key], fed)
        return found

    def set_thresholds(self, name: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Put thresholds (``stage1``, ``stage2``, ``watch``, ``product``) in force from now on.

        Requests that are there already keep those that they began with.

        Raises:
            SettingError: an unknown bundle, a stage that it does not have, a value outside [0, 1].
        """
        check_choice("thresholds", "bundle", name, tuple(self.tenants))
        tenant = self.tenants[name]
        # A new tenant: rows keep the one that they began with, so nobody changes gates midway.
        self.tenants[name] = replace(tenant, gate=tenant.gate.with_thresholds(thresholds))
        return self.tenants[name].gate.thresholds()

    def take(self, counts: Mapping[str, int | None]) -> dict[str, Decision]:
        """Decisions on requests by id, each after the tokens of its reply; they are then forgotten.

        A reply is given by its count of tokens: readings past its end do not count. None stands for
        one that was left before its end, of which everything read counts. Unknown ids are left out.
        """
        found = {}
        for key, ended in counts.items():
            if key in self.rows:
                # The worker runs ahead of the front end, past a stop string say: readings behind
                # the reply's last token are of text that the client never gets.
                fed = None if ended is None else ended + 1
                found[key] = _at(self.rows.pop(key), fed).session.decision
        return found

    def step(self, rows: Sequence[tuple[int, Row, int]], read: Read) -> tuple[list[int], list[int]]:
        """Judge the rows of one sampling step.

        Args:
            rows: Place in the batch, row, and reply tokens fed so far (0 at the prompt's end).
            read: States ``[n, d]`` of the whole batch at a point.

        Returns:
            Places whose logits are to come from the refusal head, and places that must be rolled
            back; no place is in both.
        """
        due = [Due(place, row, fed + row.task.fed) for place, row, fed in rows]
        judged = [one for one in due if one.row.task.mode != "refuse"]
        for one in judged:
            one.row.enter(one.fed)
        # A row keeps the tenant that it began with, and probers score whole batches: so one call
        # for each tenant.
        for tenant in dict.fromkeys(one.row.tenant for one in judged):
            _judge(tenant.gate, [one for one in judged if one.row.tenant is tenant], read)
        switch: list[int] = []
        stop: list[int] = []
        for one in due:
            if _switches(one):
                switch.append(one.place)
            elif _stops(one):
                stop.append(one.place)
        return switch, stop


def _switches(one: Due) -> bool:
    """Whether the row's next token comes from the refusal head."""
    mode, decision = one.row.task.mode, one.session.decision
    if one.row.tenant.head is None:
        return False
    if mode == "refuse":
        return True
    # What fired inside the reply is not switched in place: its prompt's end is not in this step.
    at_once = one.session.acts and decision.token_index == 0
    return at_once and mode in ("enforce", "pilot") and not one.row.bent


def _stops(one: Due) -> bool:
    """Whether a row that is not switched must be rolled back."""
    mode, session = one.row.task.mode, one.session
    if one.row.tenant.head is None or mode in _READ_ONLY:
        return False
    if session.acts and (one.fed > 0 or one.row.bent):
        return True
    return mode == "enforce" and session.pending


def _judge(gate: Gate, rows: list[Due], read: Read) -> None:
    """Read the rows of one gate: at their prompt's end, or in their reply."""
    _at_prompt(gate, [one for one in rows if one.fed == 0], read)
    replying = [one for one in rows if one.fed > 0]
    for one in replying:
        _check_known(one)
    running = [one for one in replying if not one.session.decision.fired]
    _at_pilot(gate, [one for one in running if one.session.pending], read)
    # The watch follows stage 2 in the same step: a row that was just cleared is watched at once.
    watched = [one for one in running if not one.session.decision.fired and not one.session.pending]
    _at_watch(gate, [one for one in watched if _is_watched(gate, one)], read)


def _check_known(one: Due) -> None:
    """In the middle of a reply with nothing known of it any more: the failure rule decides."""
    gate, decision = one.row.tenant.gate, one.session.decision
    asks = gate.always or gate.stage1 is not None or gate.stage2 is not None
    if asks and not one.session.pending and decision.stage == "none" and not decision.scores:
        one.row.know(
            one.fed, Known(one.session.lost("the decision on its prompt is lost", one.fed))
        )


def _at_prompt(gate: Gate, rows: list[Due], read: Read) -> None:
    """Ask stage 1; of pending rows, keep what stage 2 will read of the prompt."""
    if not rows:
        return
    started = time.perf_counter()
    places = [one.place for one in rows]
    states = {point: read(point)[places] for point in gate.prompt_points}
    activations = Activations(states, {}, _texts(rows))
    final = [one.row.speaks_once for one in rows]
    found = at_prompt([one.session for one in rows], activations, started, final)
    first = [point for point in gate.pilot_points if point.position.index == 0]
    read_later = gate.stage2.prober.points if gate.stage2 is not None else ()
    for at, (one, session) in enumerate(zip(rows, found, strict=True)):
        if not session.pending:
            one.row.know(0, Known(session))
            continue
        # Copies: the step's states are overwritten by the next one.
        prompt = {p: states[p][at].clone() for p in read_later if p in states}
        pilot = {point: read(point)[one.place].clone() for point in first}
        one.row.know(0, Known(session, prompt, pilot))
    if gate.pilot == 0:
        _judge_pilot(gate, [one for one in rows if one.session.pending])


def _at_pilot(gate: Gate, rows: list[Due], read: Read) -> None:
    """Keep pilot states of pending rows; ask stage 2 about those whose last one has come.

    The last token of a reply that has ended stands in for those that are missing.
    """
    for one in rows:
        pilot = dict(one.row.known.pilot)
        for point in gate.pilot_points:
            index = point.position.index
            if index == one.fed or (one.ended and index > one.fed):
                pilot[point] = read(point)[one.place].clone()
        one.row.know(one.fed, replace(one.row.known, pilot=pilot))
    _judge_pilot(gate, [one for one in rows if one.fed >= gate.pilot or one.ended])


def _judge_pilot(gate: Gate, rows: list[Due]) -> None:
    """Ask stage 2; a row of which a state is missing goes by the failure rule."""
    if not rows:
        return
    started = time.perf_counter()
    points = gate.stage2.prober.points if gate.stage2 is not None else ()
    whole: list[Due] = []
    kept: list[dict[ReadPoint, Tensor]] = []
    for one in rows:
        states = {**one.row.known.prompt, **one.row.known.pilot}
        if set(points) <= set(states):
            whole.append(one)
            kept.append(states)
        else:
            why = "the states of its first reply tokens are lost"
            one.row.know(one.fed, Known(one.session.lost(why, one.fed)))
    if not whole:
        return
    stacked: dict[ReadPoint, Tensor] = {}
    for point in points:
        stacked[point] = torch.stack([states[point] for states in kept])
    activations = Activations(stacked, {}, _texts(whole))
    sessions = [one.session for one in whole]
    _know(whole, at_pilot(sessions, activations, [one.fed for one in whole], started))


def _is_watched(gate: Gate, one: Due) -> bool:
    """Whether the watch is due on a row: every few tokens, and where its reply has ended."""
    if gate.watch is None or (gate.watch_until is not None and one.fed > gate.watch_until):
        return False
    return one.ended or one.fed % gate.watch_every == 0


def _at_watch(gate: Gate, rows: list[Due], read: Read) -> None:
    """Ask the watch."""
    if not rows or gate.watch is None:
        return
    started = time.perf_counter()
    places = [one.place for one in rows]
    states = {point: read(point)[places] for point in gate.watch.prober.points}
    activations = Activations(states, {}, _texts(rows))
    sessions = [one.session for one in rows]
    _know(rows, at_watch(sessions, activations, [one.fed for one in rows], started))


def _know(rows: list[Due], sessions: list[Session]) -> None:
    """Put sessions on record; once a row is decided, the states for stage 2 are let go."""
    for one, session in zip(rows, sessions, strict=True):
        one.row.know(one.fed, Known(session))


def _texts(rows: list[Due]) -> tuple[str, ...]:
    return tuple(one.row.task.text for one in rows)


def _at(row: Row, fed: int | None) -> Known:
    return row.known if fed is None else row.before(fed)


def _standing(row: Row, fed: int | None) -> Standing:
    known = _at(row, fed)
    decision = known.session.decision
    # A constrained row that has fired is about to be rolled back, whenever it fired.
    acts = known.session.acts
    if known.session.pending or (acts and (decision.token_index > 0 or row.bent)):
        return "pending"
    return "refusing" if acts else "clear"
