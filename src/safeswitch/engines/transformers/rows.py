"""The switch at work on one batch in lockstep: states go to the gate, fired rows get other logits.

A row's life in a batch:

    prompt ── stage 1 ──┬── fired ──── the second head, from the first token on ── ended
                        ├── pending ── writes pilot tokens ── stage 2 ──┬── fired: rolled back
                        │                                               └── cleared ──┐
                        └── cleared ── writes its reply ◄─────────────────────────────┘
                                             └── the watch, every few ──┬── fired: rolled back
                                                 tokens and at the end  └── ended

    rolled back ──┬── in place: the second head, from the prompt's end, in the same batch ── ended
                  └── else: stopped, for the caller to run again

Where stage 2 waits for the end of thinking, the watch reads pending rows too. Any action but a head
stops the rows that fire at once, and the caller runs them again. What was decided is kept by
:mod:`safeswitch.switch.session`; the masks here say the same, for whole-batch arithmetic.

Everything happens inside one forward hook on the LM head, so that whatever a model does to its raw
logits afterwards (soft caps, scaling) is done alike to both heads, and rows that have not fired are
never touched. When stage 2 fires after k pilot tokens, the row's logits are computed from the state
kept from its prompt's end: the refusal starts in the same forward pass, with no second prefill.

Letters: b rows, d hidden size, V vocabulary, t reply tokens fed. Knows nothing of caches, attention
masks or sampling.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from safeswitch.activations.reader import Reader
from safeswitch.activations.record import mean_over
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ModelError
from safeswitch.core.types import SPANS, ReadPoint, Site
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thread
from safeswitch.switch.actuators.base import Actuator, HeadActuator
from safeswitch.switch.gate import Gate
from safeswitch.switch.session import Session, at_pilot, at_prompt, at_watch


class Rows:
    """The gate at work on b rows.

    Args:
        lm: The model.
        gate: What decides.
        actuator: What is done to rows that fire; any but a head is left to the caller, who finds
            the rows by the ``actuator`` of their decision.
        lengths: Prompt tokens of each row.
        texts: Plain text of each request, for readers of text.
        in_place: Whether a row that fires inside its reply may be rolled back inside this batch;
            else it only stops here.
        appended_states: States that stage 1 reads after appended tokens, in a pass of its own.
        threads: Follow the thinking of each row, where stage 2 waits for its end.

    Attributes:
        sessions: What is decided on each row.
        fired: ``[b]`` bool, of the sessions.
        switched: ``[b]`` bool: fired, and the actuator acts on it.
        edited: ``[b]`` bool: fired, and a policy has it answered under another prompt, which this
            batch cannot do: it stops here.
        pending: ``[b]`` bool, of the sessions.
        fed: Reply tokens fed so far; set by the loop.
        valid: ``[b]`` bool: rows whose newest token is their own, not padding; set by the loop.
        alive: ``[b]`` bool: rows that write more tokens after it; set by the loop.
        leaving: Rows that leave their reply after the newest forward pass: rolled back where
            ``in_place``, else stopped, for the caller to run again.

    Raises:
        ModelError: the gate reads the top layer of a model whose head is given something that
            cannot be worked back to it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        gate: Gate,
        actuator: Actuator,
        lengths: Sequence[int],
        texts: Sequence[str],
        *,
        in_place: bool,
        appended_states: Mapping[ReadPoint, Tensor] | None = None,
        threads: Sequence[Thread] = (),
    ) -> None:
        self.gate = gate
        self.actuator = actuator
        self.head = actuator.head
        self.in_place = in_place and self.head is not None
        self.lengths = lengths
        self.texts = tuple(texts)
        self.sessions = [Session.begin(gate, actuator)] * len(lengths)
        self.fired = torch.zeros(len(lengths), dtype=torch.bool)
        self.switched = torch.zeros_like(self.fired)
        self.edited = torch.zeros_like(self.fired)
        self.pending = torch.zeros_like(self.fired)
        self.fed = 0
        self.valid = torch.ones(len(lengths), dtype=torch.bool)
        self.alive = torch.ones(len(lengths), dtype=torch.bool)
        self.leaving = torch.zeros(0, dtype=torch.long)
        self.refusing = torch.zeros(len(lengths), dtype=torch.bool)
        """``[b]``: rows whose newest logits are the second head's."""
        self._fraction = torch.ones(len(lengths))
        self._began = torch.zeros(len(lengths), dtype=torch.long)
        """Reply tokens that had been fed when each row fired."""
        self._read = torch.zeros(len(lengths), dtype=torch.long)
        """Reply tokens after which the states in ``_last`` were read."""
        self._last: dict[Site, Tensor] = {}
        self._pilot: dict[ReadPoint, Tensor] = {}
        self._prompt: Activations | None = None
        self._prompt_head_input: Tensor | None = None
        self._appended_states = appended_states or {}
        self._threads = tuple(threads)
        self._lm = lm
        self._top = lm.num_layers
        self._scale = self._head_scale()
        self._handle: RemovableHandle | None = None
        self._windows = _windows(gate, lengths)
        self._reader = self._make_reader()

    def _head_scale(self) -> float:
        """What the model multiplies the top layer's state by; 1 where that is not read."""
        scale = self._lm.traits.head_scale if self._top in self.gate.running_sites else 1.0
        if scale is None:
            raise ModelError(
                f"layer {self._top} (-1) of {self._lm.model_id} cannot be read while it replies: "
                "between the final norm and the LM head the model does more than scale; use layers "
                f"0..{self._top - 1}"
            )
        return scale

    def _make_reader(self) -> Reader | None:
        """What brings the states; the top layer's is the head's input, but for a window."""
        sites = {site for site in self.gate.running_sites if site != self._top}
        if self._top in self._windows:
            sites.add(self._top)
        if not sites:
            return None
        return Reader(self._lm, sites, {site: partial(self._keep, site) for site in sites})

    def __enter__(self) -> Rows:
        if self._reader is not None:
            self._reader.__enter__()
        try:
            self._handle = self._lm.parts.head.register_forward_hook(self._on_head)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.__exit__(None, None, None)

    @property
    def changes_rows(self) -> bool:
        """Whether a row that fires is changed, so that its text must wait until it is decided."""
        return self.actuator.place != "none"

    @property
    def stopped(self) -> Tensor:
        """Those of ``leaving`` that stop here, for the caller to run again; the others are rolled
        back."""
        return self.leaving[self.edited[self.leaving]] if self.in_place else self.leaving

    @property
    def waiting(self) -> Tensor:
        """``[b]`` bool: rows on whose newest token the gate speaks, or would if they ended now."""
        return self.pending | self._watched

    @property
    def owing(self) -> bool:
        """Whether a finished row waits for a decision, for which one more token must be fed."""
        return bool((self.waiting & ~self.alive).any())

    @property
    def unread(self) -> int:
        """Newest tokens of a running row on which the watch has yet to speak."""
        if not self._watching:
            return 0
        return self.fed % self.gate.watch_every or self.gate.watch_every

    def see(self, tokens: Tensor) -> None:
        """Take note of the tokens ``[b]`` just chosen, before they are fed, to follow thinking."""
        if not self._threads:
            return
        following = (self.pending & self.alive).nonzero().flatten().tolist()
        if following:
            chosen = tokens.tolist()
            for row in following:
                self._threads[row].take(chosen[row])

    @property
    def _watching(self) -> bool:
        until = self.gate.watch_until
        return self.gate.watch is not None and (until is None or self.fed <= until)

    @property
    def _watched(self) -> Tensor:
        """``[b]`` bool: rows whose newest token the watch may judge.

        A pending row is not watched, since stage 2 speaks first; where stage 2 waits for the end
        of thinking, the watch reads the thinking.
        """
        if not self._watching:
            return torch.zeros_like(self.fired)
        return ~self.fired & (~self.pending | self.gate.answers) & self.valid

    @property
    def _answers(self) -> Tensor:
        """``[b]``: reply tokens in front of each row's answer, infinite while it has not begun."""
        if not self.gate.answers:
            return torch.zeros(len(self.lengths))
        starts = [float("inf") if t.answer is None else float(t.answer) for t in self._threads]
        return torch.tensor(starts)

    @property
    def _due(self) -> Tensor:
        """``[b]`` bool: rows on which stage 2 is to speak now.

        A row that ends before its pilot tokens have all come is padded, and its last own state
        stands in for those that are missing; one that ends while it thinks is not waited for.
        """
        over = self.gate.answers & ~self.alive
        return self.pending & (over | (self.fed >= self._answers + self.gate.pilot))

    def _keep(self, site: Site, hidden: Tensor) -> Tensor:
        """What is kept of all states ``[b, t, d]`` of a site: a prompt's window, or the last
        token."""
        if self.fed == 0 and site in self._windows:
            return hidden[:, -self._windows[site] :]
        return hidden[:, -1:]

    def _on_head(self, head: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """The hook: judge the newest token, then change the logits of the rows that have fired."""
        self.leaving = self.leaving[:0]
        pending = bool(self.pending.any())
        if self.fed > 0 and not (pending or self._watching or bool(self.fired.any())):
            # Nobody speaks any more: a row never waits again once it is cleared.
            self._close_reader()
            return None
        hidden, logits = args[0][:, -1], output[:, -1]
        before = self.switched | self.edited
        if self.fed == 0:
            self._judge_prompt(hidden)
        elif pending or bool(self._watched.any()):
            self._judge_reply(hidden)
        self._change_logits(head, hidden, logits, before)
        if not self._watching and not bool(self.pending.any()):
            self._close_reader()
        return output

    def _change_logits(
        self, head: nn.Module, hidden: Tensor, logits: Tensor, before: Tensor
    ) -> None:
        """Give rows that have fired the second head's logits, in place.

        Args:
            head: The model's LM head.
            hidden: ``[b, d]``, its input for the newest tokens.
            logits: ``[b, V]``, its output.
            before: ``[b]`` bool: rows that had been acted on before this reading.
        """
        if not self.changes_rows:
            return
        self.leaving = self._leaving_now(before)
        if self.head is None or not bool(self.switched.any()):
            return
        new = (self.switched & ~before).nonzero().flatten()
        self.refusing[new] = True
        self._began[new] = self.fed
        if self.fed > 0 and len(new) and self.in_place:
            self._speak_from_prompt(self.head, head, logits, new)
        # What fired after its prompt has its logits already, or is stopped.
        acting = self.switched & before if self.fed > 0 else self.switched
        if self.head.reach is not None:
            acting = acting & (self.fed - self._began < self.head.reach)
            self.refusing = acting | (self.switched & ~before)
        rows = acting.nonzero().flatten()
        if len(rows):
            there = rows.to(logits.device)
            here = hidden[rows.to(hidden.device)]
            logits[there] = self._second_logits(self.head, logits[there], here, rows)

    def _leaving_now(self, before: Tensor) -> Tensor:
        """Rows that leave their reply; ``before`` ``[b]`` bool: acted on before this reading.

        A second head needs nobody to leave at the prompt's end, since no reply has begun. Every
        other action does: it reads the prompt anew, also for those that it leads the other way.
        """
        acted = self.switched | self.edited
        if self.fed > 0:
            return (acted & ~before).nonzero().flatten()
        if self.head is not None:
            return self.edited.nonzero().flatten()
        relieved = torch.tensor([session.relieved for session in self.sessions])
        return (acted | relieved).nonzero().flatten()

    def _speak_from_prompt(
        self, second: HeadActuator, head: nn.Module, logits: Tensor, rows: Tensor
    ) -> None:
        """Put the first logits of a refusal in the place of ``rows`` ``[n]`` of ``logits``.

        A rolled-back row speaks from its prompt's end: its newest state belongs to the reply that
        is thrown away.
        """
        assert self._prompt_head_input is not None
        kept = self._prompt_head_input[rows.to(self._prompt_head_input.device)]
        # ``forward``, not a call: this runs inside the head's own hook, which must not run again.
        base = head.forward(kept)
        logits[rows.to(logits.device)] = self._second_logits(second, base, kept, rows)

    def _second_logits(
        self, second: HeadActuator, logits: Tensor, hidden: Tensor, rows: Tensor
    ) -> Tensor:
        """The second head's logits ``[n, V]`` of ``rows`` ``[n]``, each in its own fraction."""
        found = second.apply(logits, hidden)
        fraction = self._fraction[rows].to(found.device, found.dtype)[:, None]
        return found if bool((fraction == 1.0).all()) else torch.lerp(logits, found, fraction)

    def _state(self, site: Site, hidden: Tensor) -> Tensor:
        """The newest token's state at ``site``, ``[b, d]``."""
        if site == self._top:
            return hidden if self._scale == 1.0 else hidden / self._scale
        assert self._reader is not None
        return self._reader.states[site][:, -1]

    def _judge_prompt(self, hidden: Tensor) -> None:
        """Ask stage 1; keep what later stages and a roll-back need of the prompt's end."""
        started = time.perf_counter()
        self._prompt = self._prompt_activations(hidden)
        found = at_prompt(self.sessions, self._prompt, started)
        self._take(range(len(found)), found)
        pending = bool(self.pending.any())
        if pending or self.gate.watch is not None:
            # A copy: the buffer behind ``hidden`` may be used again by the next forward pass.
            self._prompt_head_input = hidden.clone()
        if pending:
            self._last = {site: self._state(site, hidden).clone() for site in self._reply_sites}
        self._take_pilot()
        if bool(self._due.any()):
            self._judge_pilot()

    def _prompt_activations(self, hidden: Tensor) -> Activations:
        """What stages 1 and 2 read of the prompt."""
        states: dict[ReadPoint, Tensor] = {}
        masks: dict[ReadPoint, Tensor] = {}
        for point in self.gate.prompt_points:
            if point in self._appended_states:
                states[point] = self._appended_states[point].to(hidden.device)
            elif point.position.kind == "prompt_end":
                states[point] = self._state(point.site, hidden)
            elif point.position.kind == "mean":
                states[point] = mean_over(*self._window(point))
            else:
                states[point], masks[point] = self._window(point)
        return Activations(states, masks, self.texts)

    @property
    def _reply_sites(self) -> set[Site]:
        watched = self.gate.watch.prober.points if self.gate.watch is not None else ()
        return {point.site for point in (*self.gate.pilot_points, *watched)}

    def _window(self, point: ReadPoint) -> tuple[Tensor, Tensor]:
        """States ``[b, w, d]`` of the last w prompt tokens and their mask ``[b, w]``.

        Zero where a row is shorter: what stands there is padding, and may not even be finite.
        """
        assert self._reader is not None
        taken = self._reader.states[point.site][:, -point.position.index :]
        width = taken.shape[1]
        lengths = torch.tensor(self.lengths, device=taken.device)
        mask = torch.arange(width, device=taken.device)[None] >= (width - lengths)[:, None]
        return torch.where(mask[..., None], taken, taken.new_zeros(())), mask

    def _judge_reply(self, hidden: Tensor) -> None:
        """After ``fed`` reply tokens: keep pilot states; ask stage 2 and the watch where due."""
        ended = torch.zeros_like(self.pending)
        if bool(self.pending.any()):
            self._keep_newest(hidden)
            self._take_pilot()
            due = self._due
            if bool(due.any()):
                # A row whose reply is over is not among those that the watch looks at, but where
                # stage 2 clears it, the watch has yet to speak on its last token.
                ended = due & ~self.valid
                self._judge_pilot()
        if self.gate.watch is not None:
            self._judge_watched(hidden, ended & ~self.fired)

    def _keep_newest(self, hidden: Tensor) -> None:
        """Keep the newest token's states of every row; of one that has ended, those of its last."""
        valid = self.valid.to(hidden.device)[:, None]
        for site, kept in self._last.items():
            self._last[site] = torch.where(valid.to(kept.device), self._state(site, hidden), kept)
        self._read[self.valid] = self.fed

    def _take_pilot(self) -> None:
        """Take the newest states for the pilot points that have not been passed yet."""
        if not self._last:
            return
        for point in self.gate.pilot_points:
            newest = self._last[point.site]
            if self.fed == 0:
                self._pilot[point] = newest.clone()
                continue
            running = (self.fed <= self._answers + point.position.index).to(newest.device)[:, None]
            self._pilot[point] = torch.where(running, newest, self._pilot[point])

    def _judge_pilot(self) -> None:
        """Ask stage 2 about the rows that are due."""
        assert self._prompt is not None
        started = time.perf_counter()
        states = {**self._prompt.states, **self._pilot}
        rows = self._due.nonzero().flatten()
        activations = Activations(states, self._prompt.masks, self.texts).select(rows)
        places = rows.tolist()
        sessions = [self.sessions[row] for row in places]
        self._take(places, at_pilot(sessions, activations, self._counts(places), started))

    def _judge_watched(self, hidden: Tensor, ended: Tensor) -> None:
        """Ask the watch about rows that are due.

        ``ended`` ``[b]``: rows that had ended and that stage 2 has just cleared. Their last own
        token is still to be watched, and its states are those that were kept.
        """
        assert self.gate.watch is not None
        started = time.perf_counter()
        watched = self._watched
        if self.fed % self.gate.watch_every:
            watched = watched & ~self.alive
        if self.gate.watch_until is not None:
            ended = ended & (self._read <= self.gate.watch_until)
        rows = (watched | ended).nonzero().flatten()
        if not len(rows):
            return
        kept = bool(ended.any())
        states = {}
        for point in self.gate.watch.prober.points:
            states[point] = self._last[point.site] if kept else self._state(point.site, hidden)
        activations = Activations(states, {}, self.texts).select(rows)
        places = rows.tolist()
        sessions = [self.sessions[row] for row in places]
        self._take(places, at_watch(sessions, activations, self._counts(places), started))

    def _counts(self, rows: Sequence[int]) -> list[int]:
        """Reply tokens at each row's reading: those fed, or, once it is padded, its own last."""
        valid, read = self.valid.tolist(), self._read.tolist()
        return [self.fed if valid[row] else read[row] for row in rows]

    def _take(self, rows: Sequence[int], sessions: Sequence[Session]) -> None:
        """Take over the sessions of ``rows`` after a reading, and make the masks say the same."""
        for row, session in zip(rows, sessions, strict=True):
            self.sessions[row] = session
        self.fired = torch.tensor([session.decision.fired for session in self.sessions])
        acted = torch.tensor([session.acts for session in self.sessions])
        own = torch.tensor([session.action is self.actuator for session in self.sessions])
        self.switched, self.edited = acted & own, acted & ~own
        self.pending = torch.tensor([session.pending for session in self.sessions])
        self._fraction = torch.tensor([session.fraction for session in self.sessions])


def _windows(gate: Gate, lengths: Sequence[int]) -> dict[Site, int]:
    """Prompt tokens to be kept by site, where the gate reads more than the last."""
    widest: dict[Site, int] = {}
    for point in gate.prompt_points:
        if point.position.kind in SPANS:
            width = point.position.index or max(lengths)
            widest[point.site] = max(width, widest.get(point.site, 0))
    return widest
