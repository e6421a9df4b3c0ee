"""The gate at work on requests that come and go: one row of state per request, judged in whatever batch it sits.

Follows :mod:`safeswitch.engines.rows` reading for reading, so that both engines decide alike; here every row has its own
count of reply tokens, and a reading may have to be done again: a chunk of a prompt, or a request that was preempted, shows
the same count twice, and the last reading of a count is the one that holds. A reply that the front end ends (a stop string) has
been read past its end by then, so what was known at every count is kept for a while. Knows nothing of vLLM.

Letters: n rows of a step, d hidden size.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import check_choice
from safeswitch.core.types import Decision, ReadPoint
from safeswitch.engines.vllm.settings import Task
from safeswitch.switch.actuators import HeadActuator
from safeswitch.switch.gate import Gate, Verdict

Standing = Literal["pending", "refusing", "clear"]
_KEPT = 8192
_LAG = 64
"""Tokens by which the workers may be ahead of the front end with nothing known of a row forgotten."""


@dataclass(frozen=True)
class State:
    """What is known of one request; replaced, never changed."""

    decision: Decision
    pending: bool = False
    stage1: float = 0.0
    prompt: Mapping[ReadPoint, Tensor] = field(default_factory=dict)
    pilot: Mapping[ReadPoint, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Tenant:
    """One bundle on the engine: its gate, and the head that acts (None when it only observes)."""

    name: str
    gate: Gate
    head: HeadActuator | None
    id: str = ""
    """Fingerprint of the switch."""


class Row:
    """One request in the worker."""

    def __init__(self, task: Task, tenant: Tenant) -> None:
        self.task, self.tenant = task, tenant
        self.live = False
        self._known = [(-1, State(_undecided(tenant.gate)))]

    @property
    def state(self) -> State:
        """What is known now."""
        return self._known[-1][1]

    def before(self, fed: int) -> State:
        """What was known before the reading at ``fed`` reply tokens; of the first kept reading where that is forgotten."""
        return next((state for at, state in reversed(self._known) if at < fed), self._known[0][1])

    def enter(self, fed: int) -> None:
        """Begin a reading at ``fed`` reply tokens: what readings there and further on have said is undone."""
        while len(self._known) > 1 and self._known[-1][0] >= fed:
            self._known.pop()

    def know(self, fed: int, state: State) -> None:
        """Put on record what the reading at ``fed`` reply tokens has said."""
        if self._known[-1][0] >= fed:
            self._known.pop()
        self._known.append((fed, state))
        while len(self._known) > 1 and self._known[1][0] < fed - _LAG:
            self._known.pop(0)


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

    def add(self, task: Task) -> Row:
        """The row of a request that enters the batch, or comes back to it."""
        row = self.rows.get(task.id)
        if row is None:
            row = self.rows[task.id] = Row(task, self.tenants[task.bundle])
        row.task, row.live = task, True
        self.rows.move_to_end(task.id)
        self._forget_oldest()
        return row

    def _forget_oldest(self) -> None:
        for key in list(self.rows)[: max(0, len(self.rows) - _KEPT)]:
            if not self.rows[key].live:
                del self.rows[key]

    def unstamped(self) -> Task:
        """The task of a request that no front end has spoken for: guarded by the first bundle."""
        self._strays += 1
        return Task(f"stray-{self._strays}", next(iter(self.tenants)), "enforce")

    def standing(self, asked: Mapping[str, int | None]) -> dict[str, Standing]:
        """How requests stood before the reading at a number of reply tokens (None: the last one): waiting for stage 2 or about
        to be taken back, refusing since their prompt, or clear; unknown ids are left out."""
        states = {key: _at(self.rows[key], fed) for key, fed in asked.items() if key in self.rows}
        return {key: _standing(state) for key, state in states.items()}

    def set_thresholds(self, name: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Put thresholds (``stage1``, ``stage2``, ``watch``, ``product``) in force for requests that come from now on.

        Raises:
            SettingError: an unknown bundle, a stage that it does not have, a value outside [0, 1].
        """
        check_choice("thresholds", "bundle", name, tuple(self.tenants))
        tenant = self.tenants[name]
        self.tenants[name] = replace(tenant, gate=tenant.gate.with_thresholds(thresholds))
        return self.tenants[name].gate.thresholds()

    def take(self, asked: Mapping[str, int | None]) -> dict[str, Decision]:
        """Decisions on requests whose replies have ended after a number of tokens (None: left before their end), which are then
        forgotten; unknown ids are left out."""
        found = [(key, self.rows.pop(key), ended) for key, ended in asked.items() if key in self.rows]
        return {key: _at(row, None if ended is None else ended + 1).decision for key, row, ended in found}

    def step(self, rows: Sequence[tuple[int, Row, int]], read: Callable[[int], Tensor]) -> tuple[list[int], list[int]]:
        """Judge the rows of one sampling step.

        Args:
            rows: Place in the batch, row, and reply tokens fed so far (0 at the prompt's end).
            read: States ``[n, d]`` of the whole batch at a layer.

        Returns:
            Places whose logits are to come from the refusal head, and places that must be taken back.
        """
        switch: list[int] = []
        stop: list[int] = []
        due = [(i, row, fed + row.task.fed) for i, row, fed in rows]
        watching = [item for item in due if item[1].task.mode != "refuse"]
        for _, row, fed in watching:
            row.enter(fed)
        for tenant in dict.fromkeys(row.tenant for _, row, _ in watching):
            mine = [item for item in watching if item[1].tenant is tenant]
            self._at_prompt(tenant, [item for item in mine if item[2] == 0], read)
            self._lost([item for item in mine if item[2] > 0])
            later = [item for item in mine if item[2] > 0 and not item[1].state.decision.fired]
            self._at_pilot(tenant, [item for item in later if item[1].state.pending], read)
            self._at_watch(tenant, later, read)
        for i, row, fed in due:
            decision, mode = row.state.decision, row.task.mode
            if row.tenant.head is None or mode == "observe":
                continue
            if mode == "refuse" or (mode in ("enforce", "pilot") and decision.fired and decision.token_index == 0):
                switch.append(i)
            elif (decision.fired and fed > 0) or (mode == "enforce" and row.state.pending):
                stop.append(i)
        return switch, stop

    def _at_prompt(self, tenant: Tenant, rows: list[tuple[int, Row, int]], read: Callable[[int], Tensor]) -> None:
        if not rows:
            return
        start = time.perf_counter()
        gate, places = tenant.gate, [i for i, _, _ in rows]
        states = {p: read(p.layer)[places] for p in gate.prompt_points}
        acts = Activations(states, {}, tuple(row.task.text for _, row, _ in rows))
        self._record(gate, "stage1", gate.at_prompt(acts), rows, start)
        for at, (i, row, _) in enumerate(rows):
            if row.state.pending:
                kept = {p: t[at].clone() for p, t in states.items()}
                first = {p: read(p.layer)[i].clone() for p in gate.pilot_points if p.position.index == 0}
                row.know(0, replace(row.state, prompt=kept, pilot=first))
        if gate.pilot == 0:
            self._judge_pilot(tenant, [item for item in rows if item[1].state.pending])

    def _at_pilot(self, tenant: Tenant, rows: list[tuple[int, Row, int]], read: Callable[[int], Tensor]) -> None:
        """Keep pilot states of pending rows; judge those whose last one has come, or whose reply has ended."""
        gate = tenant.gate
        for i, row, fed in rows:
            ended = row.task.mode == "judge"
            new = [p for p in gate.pilot_points if p.position.index == fed or (ended and p.position.index > fed)]
            row.know(fed, replace(row.state, pilot={**row.state.pilot, **{p: read(p.layer)[i].clone() for p in new}}))
        self._judge_pilot(tenant, [item for item in rows if item[2] >= gate.pilot or item[1].task.mode == "judge"])

    def _judge_pilot(self, tenant: Tenant, rows: list[tuple[int, Row, int]]) -> None:
        if not rows:
            return
        start = time.perf_counter()
        known = [{**row.state.prompt, **row.state.pilot} for _, row, _ in rows]
        whole = [item for item, states in zip(rows, known, strict=True) if set(_points(tenant.gate)) <= set(states)]
        for item in rows:
            if item not in whole:
                _fail(item[1], "stage2", "the states of its first reply tokens are lost", item[2])
        known = [{**row.state.prompt, **row.state.pilot} for _, row, _ in whole]
        if not whole:
            return
        states = {p: torch.stack([one[p] for one in known]) for p in _points(tenant.gate)}
        acts = Activations(states, {}, tuple(row.task.text for _, row, _ in whole))
        first = torch.tensor([row.state.stage1 for _, row, _ in whole])
        self._record(tenant.gate, "stage2", tenant.gate.at_pilot(acts, first), whole, start)

    def _at_watch(self, tenant: Tenant, rows: list[tuple[int, Row, int]], read: Callable[[int], Tensor]) -> None:
        gate = tenant.gate
        if gate.watch is None:
            return
        due = [
            (i, row, fed) for i, row, fed in rows
            if not row.state.decision.fired and not row.state.pending and (gate.watch_until is None or fed <= gate.watch_until)
            and (fed % gate.watch_every == 0 or row.task.mode == "judge")
        ]  # fmt: skip
        if not due:
            return
        start = time.perf_counter()
        places = [i for i, _, _ in due]
        states = {p: read(p.layer)[places] for p in gate.watch.prober.points}
        acts = Activations(states, {}, tuple(row.task.text for _, row, _ in due))
        self._record(gate, "watch", gate.at_watch(acts), due, start)

    def _lost(self, rows: list[tuple[int, Row, int]]) -> None:
        """Rows in the middle of a reply of which nothing is known any more: the gate's failure rule decides."""
        for _, row, fed in rows:
            decision = row.state.decision
            if not row.state.pending and decision.stage == "none" and not decision.scores and _asks(row.tenant.gate):
                _fail(row, "stage1", "the verdict on its prompt is lost", fed)

    def _record(self, gate: Gate, stage: str, verdict: Verdict, rows: list[tuple[int, Row, int]], start: float) -> None:
        share = (time.perf_counter() - start) / len(rows)
        asked = not gate.always and not (stage == "stage1" and gate.stage1 is None)
        for place, (_, row, fed) in enumerate(rows):
            old, error, score = row.state.decision, verdict.errors[place], float(verdict.scores[place])
            fired, pending = bool(verdict.fired[place]), bool(verdict.pending[place])
            name = "error" if error else "always" if gate.always else stage if asked else "none"
            acts = fired and row.task.mode != "observe" and row.tenant.head is not None
            decision = replace(
                old, fired=fired, stage=name, token_index=fed, error=error or old.error, latency_s=old.latency_s + share,
                scores={**old.scores, stage: score} if asked and not error else dict(old.scores),
                actuator=row.tenant.head.kind if acts and row.tenant.head is not None else "none",
            )
            stage1 = score if stage == "stage1" else row.state.stage1
            kept = row.state if pending else replace(row.state, prompt={}, pilot={})
            row.know(fed, replace(kept, decision=decision, pending=pending, stage1=stage1))


def _at(row: Row, fed: int | None) -> State:
    return row.state if fed is None else row.before(fed)


def _standing(state: State) -> Standing:
    if state.pending or (state.decision.fired and state.decision.token_index > 0):
        return "pending"
    return "refusing" if state.decision.fired else "clear"


def _undecided(gate: Gate) -> Decision:
    return Decision(False, "none", thresholds=gate.thresholds(), rule=gate.rule)


def _asks(gate: Gate) -> bool:
    return gate.always or gate.stage1 is not None or gate.stage2 is not None


def _points(gate: Gate) -> tuple[ReadPoint, ...]:
    return gate.stage2.prober.points if gate.stage2 is not None else ()


def _fail(row: Row, stage: str, why: str, fed: int) -> None:
    gate = row.tenant.gate
    decision = replace(row.state.decision, fired=gate.fail == "closed", stage="error", error=why, token_index=fed)
    row.know(fed, State(decision))
