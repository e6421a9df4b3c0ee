"""The switch at work on one batch: reads states, asks the gate, changes the logits of the rows that have fired.

Everything happens inside one forward hook on the LM head, so that whatever a model does to its raw logits afterwards
(soft caps, scaling) is done alike to both heads, and rows that have not fired are never touched. When stage 2 fires after
k pilot tokens, the row's logits are computed from the state kept from its prompt's end: the refusal starts in the same
forward pass, with no second prefill.

Letters: b rows, d hidden size, V vocabulary, t reply tokens fed. Knows nothing of caches, masks or sampling.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from safeswitch.activations.reader import Reader
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ModelError
from safeswitch.core.types import Decision, ReadPoint
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thread
from safeswitch.switch.actuators import Actuator, HeadActuator, Steering
from safeswitch.switch.gate import Gate, Verdict


class Rows:
    """State of the gate for each of b rows.

    Args:
        lm: The model.
        gate: What decides.
        actuator: What is done to rows that fire; any but a head is left to the caller, who finds the rows by the
            ``actuator`` of their decision.
        lengths: Prompt tokens of each row.
        texts: Plain text of each request, for readers of text.
        in_place: Whether a row that fires late may be taken back inside this batch; else it only stops here.
        apart: What stage 1 reads in a pass of its own, already read.
        threads: Follow the thinking of each row, where stage 2 waits for its end.

    Raises:
        ModelError: the gate reads the top layer of a model whose head is given something that cannot be worked back to it.
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
        apart: Mapping[ReadPoint, Tensor] | None = None,
        threads: Sequence[Thread] = (),
    ) -> None:
        self.gate, self.actuator = gate, actuator
        self.head = actuator if isinstance(actuator, HeadActuator) else None
        self.in_place = in_place and self.head is not None
        self._apart = apart or {}
        self._threads = tuple(threads)
        self.lengths, self.texts = lengths, tuple(texts)
        n = len(lengths)
        self.fired = torch.zeros(n, dtype=torch.bool)
        self._relieved = torch.zeros(n, dtype=torch.bool)
        self._began = torch.zeros(n, dtype=torch.long)
        self._share = torch.ones(n)
        self.pending = torch.zeros(n, dtype=torch.bool)
        self.decisions = [Decision(False, "none", thresholds=gate.thresholds(), rule=gate.rule) for _ in range(n)]
        self.fed = 0
        self.valid = torch.ones(n, dtype=torch.bool)
        self.alive = torch.ones(n, dtype=torch.bool)
        self.turned: Tensor = torch.zeros(0, dtype=torch.long)
        self._lm = lm
        self._top = lm.num_layers
        self._scale = self._head_scale()
        self._stage1 = torch.zeros(n)
        self._last: dict[int, Tensor] = {}
        self._read = torch.zeros(n, dtype=torch.long)
        self._pilot: dict[ReadPoint, Tensor] = {}
        self._prompt: Activations | None = None
        self._prompt_head_input: Tensor | None = None
        self._handle: Any = None
        inner = [layer for layer in gate.running_layers if layer != self._top]
        self._windows: dict[int, int] = {}
        for point in gate.prompt_points:
            if point.position.kind == "window":
                width = point.position.index or max(lengths)
                self._windows[point.layer] = max(width, self._windows.get(point.layer, 0))
        layers = sorted({*inner, *([self._top] if self._top in self._windows else [])})
        keep = {layer: partial(self._keep, layer) for layer in layers}
        self._reader = Reader(lm, layers, keep) if layers else None

    def _head_scale(self) -> float:
        scale = self._lm.traits.head_scale if self._top in self.gate.running_layers else 1.0
        if scale is None:
            raise ModelError(
                f"layer {self._top} (-1) of {self._lm.model_id} cannot be read while it replies: between the final norm and "
                f"the LM head the model does more than scale; use layers 0..{self._top - 1}"
            )
        return scale

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
    def acts(self) -> bool:
        """Whether a row that fires is changed, so that its text must wait until it is decided."""
        return self.actuator.place != "none"

    @property
    def waiting(self) -> Tensor:
        """``[b]`` bool: rows on whose newest token the gate will speak, if only because the row has ended there."""
        return self.pending | self._watched

    @property
    def owing(self) -> bool:
        """Whether a finished row still waits for a verdict, so that the loop must feed one more token."""
        return bool((self.waiting & ~self.alive).any())

    @property
    def _watched(self) -> Tensor:
        """``[b]`` bool: rows whose newest token the watch may judge."""
        if not self._watching:
            return torch.zeros_like(self.fired)
        return ~self.fired & (~self.pending | self.gate.answers) & self.valid

    @property
    def _watching(self) -> bool:
        until = self.gate.watch_until
        return self.gate.watch is not None and (until is None or self.fed <= until)

    @property
    def unread(self) -> int:
        """Newest tokens of a running row on which the watch has yet to speak."""
        return (self.fed % self.gate.watch_every or self.gate.watch_every) if self._watching else 0

    def see(self, tokens: Tensor) -> None:
        """Be told of the tokens ``[b]`` just chosen, before they are fed, where rows wait for the end of their thinking."""
        following = (self.pending & self.alive).nonzero().flatten().tolist() if self._threads else []
        if following:
            chosen = tokens.tolist()
            for row in following:
                self._threads[row].take(chosen[row])

    @property
    def _answers(self) -> Tensor:
        """``[b]``: reply tokens in front of each row's answer, infinite while it has not begun."""
        if not self.gate.answers:
            return torch.zeros(len(self.lengths))
        return torch.tensor([float("inf") if t.answer is None else float(t.answer) for t in self._threads])

    @property
    def _due(self) -> Tensor:
        """``[b]`` bool: rows on which stage 2 is to speak now."""
        over = self.gate.answers & ~self.alive
        return self.pending & (over | (self.fed >= self._answers + self.gate.pilot))

    def _keep(self, layer: int, hidden: Tensor) -> Tensor:
        """What is kept of one layer's output ``[b, t, d]``: its prompt window, or its last token ``[b, 1, d]``."""
        if self.fed == 0 and layer in self._windows:
            return hidden[:, -self._windows[layer] :]
        return hidden[:, -1:]

    def _on_head(self, head: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.turned = self.turned[:0]
        if self.fed > 0 and self._idle:
            self._close_reader()
            return None
        hidden, logits = args[0][:, -1], output[:, -1]
        before = self.fired.clone()
        if self.fed == 0:
            self._judge_prompt(hidden)
        elif self._listening:
            self._judge_reply(hidden)
        self._act(head, hidden, logits, before)
        if not self._watching and not bool(self.pending.any()):
            self._close_reader()
        return output

    @property
    def _idle(self) -> bool:
        return not (self._watching or bool(self.fired.any()) or bool(self.pending.any()))

    @property
    def _listening(self) -> bool:
        return bool(self.pending.any()) or bool(self._watched.any())

    def _act(self, head: nn.Module, hidden: Tensor, logits: Tensor, before: Tensor) -> None:
        """Write the second head's logits into the rows that have fired."""
        new = (self.fired & ~before).nonzero().flatten()
        if not self.acts:
            return
        if self.fed > 0:
            self.turned = new
        elif self.head is None:
            self.turned = (self.fired | self._relieved).nonzero().flatten()
        if self.head is None or not bool(self.fired.any()):
            return
        self._began[new] = self.fed
        if self.fed > 0 and len(new) and self.in_place:
            assert self._prompt_head_input is not None
            kept = self._prompt_head_input[new.to(hidden.device)]
            logits[new.to(logits.device)] = self._other(self.head, head.forward(kept), kept, new)
        acting = before if self.fed > 0 else self.fired
        if self.head.reach is not None:
            acting = acting & (self.fed - self._began < self.head.reach)
        rows = acting.nonzero().flatten()
        if len(rows):
            there = rows.to(logits.device)
            logits[there] = self._other(self.head, logits[there], hidden[rows.to(hidden.device)], rows)

    def _other(self, head: HeadActuator, logits: Tensor, hidden: Tensor, rows: Tensor) -> Tensor:
        """The second head's logits ``[n, V]`` of ``rows`` ``[n]``, each with its share."""
        found = head.apply(logits, hidden)
        share = self._share[rows].to(found.device, found.dtype)[:, None]
        return found if bool((share == 1.0).all()) else torch.lerp(logits, found, share)

    def _state(self, layer: int, hidden: Tensor) -> Tensor:
        """The newest token's state at ``layer``, ``[b, d]``."""
        if layer == self._top:
            return hidden if self._scale == 1.0 else hidden / self._scale
        assert self._reader is not None
        return self._reader.states[layer][:, -1]

    def _judge_prompt(self, hidden: Tensor) -> None:
        start = time.perf_counter()
        states: dict[ReadPoint, Tensor] = {}
        masks: dict[ReadPoint, Tensor] = {}
        for point in self.gate.prompt_points:
            if point in self._apart:
                states[point] = self._apart[point].to(hidden.device)
            elif point.position.kind == "prompt_end":
                states[point] = self._state(point.layer, hidden)
            else:
                states[point], masks[point] = self._window(point, hidden)
        self._prompt = Activations(states, masks, self.texts)
        self._record("stage1", self.gate.at_prompt(self._prompt), torch.ones_like(self.fired), start)
        if bool(self.pending.any()) or self.gate.watch is not None:
            self._prompt_head_input = hidden.clone()
        if bool(self.pending.any()):
            self._last = {layer: self._state(layer, hidden).clone() for layer in self._reply_layers}
        self._take_pilot()
        if bool(self._due.any()):
            self._judge_pilot()

    @property
    def _reply_layers(self) -> set[int]:
        watched = self.gate.watch.prober.points if self.gate.watch is not None else ()
        return {point.layer for point in (*self.gate.pilot_points, *watched)}

    def _relieve(self, verdict: Verdict) -> None:
        """Mark the rows that a two-sided steering leads the other way."""
        steering = self.actuator
        if isinstance(steering, Steering) and steering.relief and self.gate.stage1 is not None:
            self._relieved = ~verdict.fired & ~verdict.pending & (verdict.scores < steering.relief_below)

    def _window(self, point: ReadPoint, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """States ``[b, w, d]`` of the last w prompt tokens, zero where a row is shorter, and their mask ``[b, w]``."""
        assert self._reader is not None
        taken = self._reader.states[point.layer][:, -point.position.index :]
        width = taken.shape[1]
        lengths = torch.tensor(self.lengths, device=taken.device)
        mask = torch.arange(width, device=taken.device)[None] >= (width - lengths)[:, None]
        return torch.where(mask[..., None], taken, taken.new_zeros(())), mask

    def _judge_reply(self, hidden: Tensor) -> None:
        """After ``fed`` reply tokens: keep pilot states; ask stage 2 when it is due, and the watch."""
        ended = torch.zeros_like(self.pending)
        if bool(self.pending.any()):
            self._keep_newest(hidden)
            self._take_pilot()
            due = self._due
            if bool(due.any()):
                ended = due & ~self.valid
                self._judge_pilot()
        if self.gate.watch is not None:
            self._judge_watched(hidden, ended & ~self.fired)

    def _keep_newest(self, hidden: Tensor) -> None:
        """Keep the states of the newest token of every row, where a row has ended those of its last."""
        valid = self.valid.to(hidden.device)[:, None]
        for layer, kept in self._last.items():
            self._last[layer] = torch.where(valid.to(kept.device), self._state(layer, hidden), kept)
        self._read[self.valid] = self.fed

    def _judge_watched(self, hidden: Tensor, ended: Tensor) -> None:
        """Ask the watch about rows that are due, and about those that stage 2 has just cleared and that had ``ended``."""
        assert self.gate.watch is not None
        start = time.perf_counter()
        watched = self._watched
        if self.fed % self.gate.watch_every:
            watched = watched & ~self.alive
        if self.gate.watch_until is not None:
            ended = ended & (self._read <= self.gate.watch_until)
        watched = watched | ended
        if not bool(watched.any()):
            return
        kept = bool(ended.any())
        points = self.gate.watch.prober.points
        states = {p: self._last[p.layer] if kept else self._state(p.layer, hidden) for p in points}
        verdict = self.gate.at_watch(Activations(states, {}, self.texts).select(watched.nonzero().flatten()))
        self._record("watch", verdict, watched, start)

    def _take_pilot(self) -> None:
        for point in self.gate.pilot_points if self._last else ():
            newest = self._last[point.layer]
            running = (self.fed <= self._answers + point.position.index).to(newest.device)[:, None]
            self._pilot[point] = torch.where(running, newest, self._pilot[point]) if self.fed else newest.clone()

    def _judge_pilot(self) -> None:
        assert self._prompt is not None
        start = time.perf_counter()
        everything = Activations({**self._prompt.states, **self._pilot}, self._prompt.masks, self.texts)
        due = self._due
        rows = due.nonzero().flatten()
        verdict = self.gate.at_pilot(everything.select(rows), self._stage1[rows])
        self._record("stage2", verdict, due, start)

    def _record(self, stage: str, verdict: Verdict, judged: Tensor, start: float) -> None:
        """Write a verdict on the ``judged`` rows into flags and decisions."""
        rows = judged.nonzero().flatten()
        self.fired[rows] = verdict.fired
        self.pending[rows] = verdict.pending if stage != "watch" else self.pending[rows] & ~verdict.fired
        if stage == "stage1":
            self._stage1 = verdict.scores
            self._relieve(verdict)
        asked = not self.gate.always and not (stage == "stage1" and self.gate.stage1 is None)
        part = self.head.share(verdict.scores) if self.head is not None and asked else None
        if part is not None:
            self._share[rows] = torch.where(verdict.fired, part, self._share[rows])
        share = (time.perf_counter() - start) / max(1, len(rows))
        for place, row in enumerate(rows.tolist()):
            old, error = self.decisions[row], verdict.errors[place]
            fired = bool(verdict.fired[place])
            fed = self.fed if bool(self.valid[row]) else int(self._read[row])
            name = "error" if error else "always" if self.gate.always else stage if asked else "none"
            scores = {**old.scores, stage: float(verdict.scores[place])} if asked and not error else dict(old.scores)
            self.decisions[row] = replace(
                old, fired=fired, stage=name if asked or self.gate.always else old.stage, scores=scores,
                token_index=fed, actuator=self.actuator.kind if fired or bool(self._relieved[row]) else "none",
                latency_s=old.latency_s + share, error=error or old.error,
            )


