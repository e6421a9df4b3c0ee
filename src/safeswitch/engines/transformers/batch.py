"""One call's requests, batch by batch: decoded under the gate, read again where the gate says so,
and run again from their prompt where an action cannot be switched on inside a batch.

    batch ── decoded under the gate ──┬── decided, and rolled back inside the batch where need be
                                      └── stopped without a reply, or fired at the late reading
                                              └── run again from the prompt, action in force

Knows nothing of files or of how tokens are chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.types import Decision, Reply
from safeswitch.engines.transformers.budget import ThinkingBudget
from safeswitch.engines.transformers.decode import Loop
from safeswitch.engines.transformers.options import Options
from safeswitch.engines.transformers.requests import Request, edited
from safeswitch.engines.transformers.rows import Rows
from safeswitch.engines.transformers.steer import acting
from safeswitch.engines.transformers.streaming import Gone, Limits, RowSink, Sinks
from safeswitch.models.batching import mixes
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thread
from safeswitch.switch.actuators.base import Actuator, NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.rules import action_for
from safeswitch.switch.session import Session, at_late
from safeswitch.switch.switch import Switch

Split = Callable[[Sequence[Request], int], list[list[Request]]]
"""Requests in the batches that they are run in, given by how many tokens a row may grow."""
FinishReason = Literal["stop", "length"]


class BatchRunner:
    """Runs the requests of one call.

    Args:
        lm: The model; the caller holds its lock.
        switch: The switch in force.
        placed: Its actuator, with a head on the model's device.
        options: Decoding options.
        sinks: Who follows which request, by its index: all of them, or none.
        split: Puts requests into batches.
    """

    def __init__(
        self,
        lm: LanguageModel,
        switch: Switch,
        placed: Actuator,
        options: Options,
        sinks: Mapping[int, RowSink],
        split: Split,
    ) -> None:
        self.lm = lm
        self.switch = switch
        self._placed = placed
        self._options = options
        self._sinks = sinks
        self._split = split

    def run(
        self, requests: Sequence[Request], progress: Callable[[int], None] | None
    ) -> list[Reply]:
        """One reply a request, in order of their index.

        Args:
            requests: All of one call; those with a decision are acted on from the first token.
            progress: Called with the number of replies finished since the last call.
        """
        decided = [request for request in requests if _acts(request)]
        others = [request for request in requests if not _acts(request)]
        replies: dict[int, Reply] = {}
        for some, run in ((others, self._run_gated), (decided, self._run_acted)):
            for batch in self.batches(some):
                for request, reply in zip(batch, run(batch), strict=True):
                    replies[request.index] = reply
                if progress is not None:
                    progress(len(batch))
        return [replies[i] for i in range(len(requests))]

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        """The requests in batches that are decoded together under the gate."""
        return self._split(requests, row_growth(self.switch.gate, self._options))

    def _run_gated(self, batch: list[Request]) -> list[Reply]:
        """A batch under the gate; rows that must be read anew follow as a batch of their own."""
        gate, actuator = self.switch.gate, self.switch.actuator
        if gate.always and actuator.place in ("prompt", "body", "text"):
            decision = Decision(True, "always", actuator=actuator.kind)
            return self._run_acted([replace(r, decision=decision) for r in batch])
        # Before the late reading nothing of a reply is decided, so nobody may follow it.
        sinks = self._sinks if gate.late is None else {}
        rows = self._rows(batch, gate, self._placed)
        replies = self.decode(batch, rows, sinks)
        if gate.late is not None:
            return self._after_late_reading(batch, replies, rows.sessions)
        again = [i for i, reply in enumerate(replies) if _stopped(reply)]
        return self._run_again(batch, replies, again)

    def _after_late_reading(
        self, batch: list[Request], replies: list[Reply], sessions: Sequence[Session]
    ) -> list[Reply]:
        """The replies once the late stage has read them; those on which it fires are run again."""
        again: list[int] = []
        for i, decision in enumerate(self._read_late(batch, replies, sessions)):
            fires = decision.fired and not replies[i].decision.fired
            replies[i] = replace(replies[i], decision=decision)
            if (fires and decision.actuator != "none") or _stopped(replies[i]):
                again.append(i)
            elif self._sinks:
                self._sinks[batch[i].index].hand(replies[i])
        return self._run_again(batch, replies, again)

    def _read_late(
        self, batch: Sequence[Request], replies: Sequence[Reply], sessions: Sequence[Session]
    ) -> list[Decision]:
        """The decisions after the late reading, to which the kinds of harm that ``sessions`` have
        seen still count."""
        ends = self._options.end_ids
        bodies: list[list[int]] = []
        for reply in replies:
            bodies.append([token for token in reply.token_ids if token not in ends])
        ended = zip(sessions, replies, strict=True)
        sessions = [replace(s, decision=r.decision, pending=False) for s, r in ended]
        texts = [self.lm.prompt_text(request.ids) for request in batch]
        prompts = [request.ids for request in batch]
        judged = judge_late(self.lm, sessions, prompts, bodies, texts)
        return [session.decision for session in judged]

    def _run_again(
        self, batch: list[Request], replies: list[Reply], again: Sequence[int]
    ) -> list[Reply]:
        """The replies, those of the places in ``again`` made anew with the action in force."""
        if not again:
            return replies
        anew: list[Request] = []
        for i in again:
            old = replies[i]
            anew.append(replace(batch[i], decision=old.decision, discarded=old.generated or 0))
        for i, reply in zip(again, self._run_acted(anew), strict=True):
            replies[i] = reply
        return replies

    def _run_acted(self, batch: list[Request]) -> list[Reply]:
        """Run requests from their prompt with the actuator in force from the first token; for those
        that a policy has answered with care, that is its safety prompt."""
        done: dict[int, Reply] = {}
        for careful in (False, True):
            part = [request for request in batch if _careful(request) == careful]
            if not part:
                continue
            actuator = self.switch.actuator
            if careful:
                actuator = action_for("careful", actuator)
            for request, reply in zip(part, self._run_under(part, actuator), strict=True):
                done[request.index] = reply
        return [done[request.index] for request in batch]

    def _run_under(self, batch: list[Request], actuator: Actuator) -> list[Reply]:
        """Run requests from their prompt under one actuator."""
        if actuator.fixed_reply is not None:
            return [self._fixed(request, actuator.fixed_reply) for request in batch]
        if actuator.place == "prompt":
            batch = self._edited(batch, actuator)
        gate, inner = Gate(), self._placed
        if actuator.head is None:
            inner = NoAction()
        else:
            gate = Gate(always=True)
        done: dict[int, Reply] = {}
        for part in self._split(batch, self._options.max_new_tokens):
            with acting(self.lm, actuator, [_strength(request, actuator) for request in part]):
                replies = self.decode(part, self._rows(part, gate, inner), self._sinks)
            for request, reply in zip(part, replies, strict=True):
                done[request.index] = reply
        return [done[request.index] for request in batch]

    def _edited(self, batch: Sequence[Request], actuator: Actuator) -> list[Request]:
        """The requests with their conversations as the action makes them."""
        conversations, encoded = edited(
            self.lm,
            actuator,
            [request.messages for request in batch],
            [request.limit for request in batch],
        )
        found: list[Request] = []
        for request, messages, one in zip(batch, conversations, encoded, strict=True):
            found.append(replace(request, messages=messages, ids=one.ids, vision=one.vision))
        return found

    def _fixed(self, request: Request, reply_text: str) -> Reply:
        """The fixed reply, cut where it is too long."""
        assert request.decision is not None
        whole = list(self.lm.tokenizer(reply_text, add_special_tokens=False)["input_ids"])
        tokens = whole[: request.limit]
        text = reply_text
        reason: FinishReason = "stop"
        if tokens != whole:
            text = self._text(tokens)
            reason = "length"
        reply = Reply(
            text, tuple(tokens), reason, request.decision, len(request.ids), request.discarded
        )
        if self._sinks:
            self._sinks[request.index].hand(reply)
        return reply

    def _rows(self, batch: Sequence[Request], gate: Gate, actuator: Actuator) -> Rows:
        """The gate at work on one batch."""
        lengths = [len(request.ids) for request in batch]
        fires_later = gate.watch is not None or gate.pilot > 0 or gate.answers
        appended = None
        if gate.stage1 is not None and gate.reread_points:
            prompts = [request.ids for request in batch]
            tokens = gate.stage1.prober.appended
            appended = reread(self.lm, prompts, tokens, gate.reread_points).states
        return Rows(
            self.lm,
            gate,
            actuator,
            lengths,
            [self.lm.prompt_text(request.ids) for request in batch],
            in_place=fires_later and self._can_roll_back(max(lengths), gate),
            appended_states=appended,
            threads=[thinking_of(self.lm, request) for request in batch] if gate.answers else [],
        )

    def _can_roll_back(self, width: int, gate: Gate) -> bool:
        """Whether a row of a batch whose longest prompt has ``width`` tokens can go back to its
        prompt's end, and then be as if it had been run alone."""
        traits = self.lm.traits
        longest = width + row_growth(gate, self._options)
        # Masked positions stay in a sliding window, and would push the prompt out of it.
        fits = traits.window is None or longest <= traits.window
        return traits.masks_back and fits and mixes(longest, traits)

    def decode(
        self, batch: Sequence[Request], rows: Rows, sinks: Mapping[int, RowSink]
    ) -> list[Reply]:
        """Decode one batch to its end."""

        def made(i: int, tokens: list[int]) -> Reply:
            decision = rows.sessions[i].decision
            return self._reply(batch[i], tokens, decision, int(loop.generated[i]))

        prompts = [request.ids for request in batch]
        ids, mask = self.lm.pad(prompts)
        followed = [sinks[request.index] for request in batch] if sinks else []
        listener = Sinks(rows, followed, made) if followed else None
        loop = Loop(rows, _seeds(batch), listener, self.lm.context_length)
        with rows:
            tokens: Any = self.lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                **self.lm.collate([request.vision for request in batch], prompts),
                generation_config=self._options.config,
                logits_processor=self._processors(batch, ids.shape[1], rows),
                stopping_criteria=self._criteria(batch, ids.shape[1], rows, followed),
                custom_generate=loop,
            )
        return [made(i, row) for i, row in enumerate(tokens)]

    def _processors(self, batch: Sequence[Request], width: int, rows: Rows) -> LogitsProcessorList:
        """The caller's logits processors, and the budget for thinking behind them."""
        processors = LogitsProcessorList(self._options.processors)
        budget = self._options.thinking_budget
        if budget is not None:
            opened = [request.opened for request in batch]
            marks = self.lm.needs_thinking()
            processors.append(ThinkingBudget(marks, budget, width, opened, rows))
        return processors

    def _criteria(
        self, batch: Sequence[Request], width: int, rows: Rows, followed: Sequence[RowSink]
    ) -> StoppingCriteriaList:
        """The caller's stopping criteria, then what ends single rows."""
        criteria = StoppingCriteriaList(self._options.criteria)
        if followed:
            criteria.append(Gone(rows, followed))
        limits = [request.limit for request in batch]
        if min(limits) < self._options.max_new_tokens:
            criteria.append(Limits(width, limits))
        if self._options.stop:
            criteria.append(StopStringCriteria(self.lm.tokenizer, list(self._options.stop)))
        return criteria

    def _reply(
        self, request: Request, tokens: list[int], decision: Decision, generated: int
    ) -> Reply:
        """The reply of one request, from the tokens that its row has come to."""
        options = self._options
        final = request.decision or decision
        whole = text = self._text(tokens)
        if not options.show_thinking and self.lm.thinking is not None:
            shown = self.lm.thinking.visible(tokens, request.opened, whole=final.refuses)
            text = self._text(shown)
        reason: FinishReason = "stop"
        at_limit = len(tokens) >= request.limit and tokens[-1] not in options.end_ids
        if at_limit and not any(stop in whole for stop in options.stop):
            reason = "length"
        return Reply(
            text, tuple(tokens), reason, final, len(request.ids), request.discarded + generated
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.lm.tokenizer.decode(list(tokens), skip_special_tokens=True))


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


def thinking_of(lm: LanguageModel, request: Request) -> Thread:
    """What follows the thinking of a request's reply.

    Raises:
        SettingError: a model without known marks.
    """
    return Thread(lm.needs_thinking(), request.opened)


def row_growth(gate: Gate, options: Options) -> int:
    """Tokens by which a row may grow: its reply, and what may have to be thrown away before it."""
    wasted = gate.pilot
    if gate.watch is not None or gate.answers:
        wasted = options.max_new_tokens
    return wasted + options.max_new_tokens


def _stopped(reply: Reply) -> bool:
    """Whether a row was stopped, since it could not be rolled back in the batch: no tokens, and an
    action that is still to be taken."""
    return reply.decision.actuator != "none" and not reply.token_ids


def _acts(request: Request) -> bool:
    """Whether an earlier reading has decided that something is done with the request."""
    return request.decision is not None and request.decision.actuator != "none"


def _careful(request: Request) -> bool:
    """Whether a policy has the request answered under a safety prompt."""
    return request.decision is not None and request.decision.act == "careful"


def _strength(request: Request, actuator: Actuator) -> float:
    """The strength in force on one request."""
    fired = request.decision is None or request.decision.fired
    return actuator.strength_on(fired, request.strength)


def _seeds(batch: Sequence[Request]) -> list[int] | None:
    """The seeds of a batch's rows: one for each, or for none."""
    seeds = [request.seed for request in batch if request.seed is not None]
    return seeds or None
