"""The transformers engine: whole batches, one prefill, rows that switch are rolled back inside the
batch.

What cannot be rolled back exactly (recurrent state, a sliding window that the reply outgrows, an
edited prompt, steered states) is run again from its prompt: slower, and correct. Knows nothing of
labels or methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from safeswitch.activations.record import record
from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ContextLengthError, DataError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import (
    RUNNING,
    Decision,
    Message,
    Prompt,
    ReadPoint,
    Reply,
    Tokens,
    as_messages,
)
from safeswitch.engines.seeds import row_seeds
from safeswitch.engines.transformers.budget import ThinkingBudget
from safeswitch.engines.transformers.decode import Loop
from safeswitch.engines.transformers.late import judge_late
from safeswitch.engines.transformers.options import Options, make_options
from safeswitch.engines.transformers.prefill import is_prefill, judge_prefill, reads_prefill
from safeswitch.engines.transformers.rows import Rows
from safeswitch.engines.transformers.steer import acting
from safeswitch.engines.transformers.streaming import (
    Follower,
    Gone,
    Limits,
    Release,
    RowSink,
    Sinks,
    Stream,
    StreamerFollower,
)
from safeswitch.models.batching import BATCH_TOKENS, length_batches, mixes
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thread
from safeswitch.models.vision import Encoded, Vision
from safeswitch.switch.actuators.base import Actuator, HeadActuator, NoAction
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.rules import action_for
from safeswitch.switch.session import Session
from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class Request:
    """One prompt on its way through the engine.

    Args:
        index: Its place among the prompts.
        messages: The conversation.
        ids: Its tokens.
        seed: Sampling seed.
        limit: Most reply tokens.
        strength: Of the switch's steering, where it is not the switch's own.
        vision: Its images.
        opened: What the prompt says of the thinking of its reply.
        decision: What an earlier reading decided, where the request is run again.
        discarded: Tokens that were generated for it before, where it is run again.
    """

    index: int
    messages: tuple[Message, ...]
    ids: list[int]
    seed: int | None
    limit: int
    strength: float | None = None
    vision: Vision = field(default_factory=dict)
    opened: bool | None = False
    decision: Decision | None = None
    discarded: int = 0


Followed = dict[int, RowSink]
"""Who follows which request, by its place among the prompts: all of them, or none."""


class TransformersEngine(ReadingEngine):
    """Runs switches on a ``transformers`` model.

    Args:
        lm: The loaded model.
        batch_size: Largest number of rows decoded together.
        allow_other_model: Accept switches fitted on other weights.
        batch_tokens: Most tokens that rows decoded together may come to, each counted as long as
            the longest prompt and its reply; a row that is longer by itself runs alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        batch_size: int = 32,
        allow_other_model: bool = False,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        for name, given in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if given < 1:
                raise SettingError(f"TransformersEngine: {name} must be 1 or more; got {given}")
        self.lm, self.batch_size, self.allow_other_model = lm, batch_size, allow_other_model
        self.batch_tokens = batch_tokens
        self._heads: WeakKeyDictionary[Actuator, HeadActuator] = WeakKeyDictionary()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        batch_size: int = 32,
        allow_other_model: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        **kwargs: Any,
    ) -> TransformersEngine:
        """Load a model folder or hub id and wrap it.

        Args:
            model: See :meth:`LanguageModel.load`, which also takes ``kwargs``.
            batch_size: As for the class, and so are the other two.
        """
        return cls(
            LanguageModel.load(model, **kwargs),
            batch_size=batch_size,
            allow_other_model=allow_other_model,
            batch_tokens=batch_tokens,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        *,
        max_new_tokens: int | Sequence[int] = 256,
        seed: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        strength: float | Sequence[float] | None = None,
        streamer: BaseStreamer | None = None,
        followers: Sequence[Follower] | None = None,
        progress: Callable[[int], None] | None = None,
        show_thinking: bool = True,
        thinking_budget: int | None = None,
        **options: Any,
    ) -> list[Reply]:
        """One reply per prompt, in order. ``options`` are those of ``transformers``' ``generate``.

        Logits processors must be stateless: they are called on the whole batch once for each
        distance by which rows have been rolled back, and must see in the tokens alone what they
        need to know.

        Args:
            prompts: Texts, message lists or examples.
            switch: What to read, decide and do; None runs the untouched model.
            max_new_tokens: Longest reply, on both sides of the switch; for all prompts or for each.
            seed: Sampling seed, one for prompt i = ``seed + i``, or one per prompt; a row then
                draws the same tokens in any batch. None draws from torch's global generator.
            stop_strings: Strings that end a reply.
            strength: Of the switch's steering on requests that fire, one or one per prompt, in
                place of its own.
            streamer: A ``transformers`` streamer for a single prompt; is given decided tokens only.
            followers: One for each prompt; each is given its reply's decided tokens, and the reply
                as soon as it is whole.
            progress: Called with the number of replies finished since the last call.
            show_thinking: Whether text and streams hold the model's thinking; a reply's tokens hold
                it in any case.
            thinking_budget: Tokens after which thinking is made to end, by its mark; replies that
                have switched are let be.

        Raises:
            DataError: an empty prompt.
            ContextLengthError: a prompt that leaves no room for the reply, as it is or with a
                system text in front.
            SettingError: an option that cannot be honoured on both sides of the switch, or a gate
                or budget that waits for the end of thinking where the model has no known marks.
            FingerprintError: a switch of another model.
        """
        if streamer is not None and len(prompts) != 1:
            raise SettingError(f"generate: a streamer takes one prompt; got {len(prompts)}")
        limits = (
            list(max_new_tokens)
            if isinstance(max_new_tokens, Sequence)
            else [int(max_new_tokens)] * len(prompts)
        )
        for name, given in (("max_new_tokens", limits), ("followers", followers)):
            if given is not None and len(given) != len(prompts):
                raise SettingError(f"generate: {len(prompts)} prompts but {len(given)} {name}")
        own, pad = self.lm.model.generation_config, self.lm.pad_token_id
        chosen = make_options(
            own, limits, stop_strings, options, pad, show_thinking, thinking_budget
        )
        switch = switch or Switch(Gate(), NoAction())
        if switch.gate.answers or thinking_budget is not None:
            self.lm.needs_thinking()
        with self.lm.lock, torch.no_grad():
            requests = self._requests(
                prompts, switch, limits, seed, _strengths(strength, len(prompts), switch.actuator)
            )
            requests = self._without_prefill(requests, switch)
            if streamer is not None:
                followers = [StreamerFollower(streamer, requests[0].ids)]
            followed = {
                i: RowSink(f, self._hider(requests[i], chosen))
                for i, f in enumerate(followers or ())
            }
            replies: dict[int, Reply] = {}
            acted = [r.decision is not None and r.decision.actuator != "none" for r in requests]
            for yes, run in ((False, self._run), (True, self._run_acted)):
                some = [r for r, taken in zip(requests, acted, strict=True) if taken == yes]
                for batch in self._batches(some, _reach(switch.gate, chosen)):
                    for request, reply in zip(
                        batch, run(batch, switch, chosen, followed), strict=True
                    ):
                        replies[request.index] = reply
                    if progress is not None:
                        progress(len(batch))
        return [replies[i] for i in range(len(prompts))]

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """The untouched model's greedy replies, and states at ``points`` (float32, on the host), in
        one teacher-forced pass.

        Args:
            prompts: Texts, message lists or examples.
            points: What to read; a reply that ends before a pilot point gives the state of its last
                token.
            max_new_tokens: Longest reply; 0 gives no replies and reads prompts alone.
            progress: Called with the number of prompts done since the last call; a reply is half of
                the work, its reading the other half.

        Raises:
            ActivationError: states that are not finite.
            SettingError: ``answer`` points, and a model without known thinking marks.
        """
        replies: list[Reply] = []
        part = None if progress is None else _shared(progress, 2 if max_new_tokens else 1)
        if max_new_tokens:
            replies = self.generate(
                prompts, max_new_tokens=max_new_tokens, do_sample=False, progress=part
            )
        encoded = self.lm.inputs(list(prompts))
        rows = [one.ids for one in encoded]
        deepest = max((p.position.index for p in points if p.position.kind in RUNNING), default=0)
        answers = [0] * len(rows)
        if replies and any(p.position.kind == "answer" for p in points):
            told = zip(prompts, rows, replies, strict=True)
            answers = [self.lm.answer_start(as_messages(p), ids, r.token_ids) for p, ids, r in told]
        fed = (
            [r.token_ids[: a + deepest] for r, a in zip(replies, answers, strict=True)]
            if replies
            else [()] * len(rows)
        )
        sequences = [[*row, *tokens] for row, tokens in zip(rows, fed, strict=True)]
        texts = [self.lm.prompt_text(row) for row in rows]
        with self.lm.lock:
            activations = record(
                self.lm,
                sequences,
                [len(row) for row in rows],
                points,
                texts=texts,
                answers=answers,
                visions=[one.vision for one in encoded],
                dtype=torch.float32,
                progress=None if part is None else _in_steps(part),
            )
        return replies, activations

    def stream(self, prompt: Prompt, switch: Switch | None = None, **options: Any) -> Stream:
        """Decided text as it becomes decided: iterate with ``for`` or ``async for``; ``.reply``
        holds the whole reply.

        Takes the options of :meth:`generate`. Closing the stream early stops the model.
        """
        return Stream(lambda sink, stop: self._stream(prompt, switch, sink, stop, options))

    def _stream(
        self,
        prompt: Prompt,
        switch: Switch | None,
        emit: Callable[[str], None],
        stop: Any,
        options: JsonObject,
    ) -> Reply:
        criteria = StoppingCriteriaList([*options.pop("stopping_criteria", []), stop])
        release = Release(self.lm.tokenizer, emit)
        reply = self.generate(
            [prompt], switch, streamer=release, stopping_criteria=criteria, **options
        )[0]
        return replace(reply, text=release.text)

    def _requests(
        self,
        prompts: Sequence[Prompt],
        switch: Switch,
        limits: Sequence[int],
        seed: int | Sequence[int] | None,
        strengths: Sequence[float | None],
    ) -> list[Request]:
        switch.check(self.lm, allow_other_model=self.allow_other_model)
        conversations = [as_messages(p) for p in prompts]
        encoded = self.lm.inputs(
            [
                p if isinstance(p, Tokens) else m
                for p, m in zip(prompts, conversations, strict=True)
            ],
            room=[reply_room(switch.gate, limit) for limit in limits],
        )
        rows = [one.ids for one in encoded]
        _check_apart(switch.gate, encoded)
        if switch.actuator.place == "prompt":
            if any(isinstance(p, Tokens) for p in prompts):
                kind = type(switch.actuator).__name__
                raise SettingError(
                    f"generate: {kind} edits conversations; a prompt given as tokens is none"
                )
            self._edited(switch.actuator, conversations, limits)
        opened = [
            self.lm.thinking_opened(m, ids) for m, ids in zip(conversations, rows, strict=True)
        ]
        seeds = row_seeds(seed, len(rows))
        own = zip(
            conversations,
            rows,
            seeds,
            limits,
            strengths,
            [one.vision for one in encoded],
            opened,
            strict=True,
        )
        return [Request(i, *parts) for i, parts in enumerate(own)]

    def _without_prefill(self, requests: list[Request], switch: Switch) -> list[Request]:
        """Requests, with a decision on those whose prefilled reply hides what stage 1 flags; an
        action answers these without it."""
        begun = [r for r in requests if is_prefill(r.messages)]
        if not begun or not reads_prefill(switch.gate):
            return requests
        bare = [r.messages[:-1] for r in begun]
        encoded = self.lm.inputs(bare, room=[r.limit for r in begun])
        found = judge_prefill(self.lm, switch.gate, switch.actuator, bare, encoded)
        told = list(requests)
        for request, messages, one, decision in zip(begun, bare, encoded, found, strict=True):
            if decision is not None and decision.actuator == "none":
                told[request.index] = replace(request, decision=decision)
            elif decision is not None:
                opened = self.lm.thinking_opened(messages, one.ids)
                told[request.index] = replace(
                    request,
                    messages=messages,
                    ids=one.ids,
                    vision=one.vision,
                    opened=opened,
                    decision=decision,
                )
        return told

    def _edited(
        self,
        actuator: Actuator,
        conversations: Sequence[tuple[Message, ...]],
        limits: Sequence[int],
    ) -> tuple[list[tuple[Message, ...]], list[Encoded]]:
        """The conversations as the prompt action makes them, as they are and encoded.

        Raises:
            ContextLengthError: one that no longer fits.
        """
        edited = [actuator.edit(messages) for messages in conversations]
        try:
            return edited, self.lm.inputs(edited, room=limits)
        except ContextLengthError as error:
            raise ContextLengthError(
                f"with the text of {type(actuator).__name__} in front, {error}"
            ) from error

    def _batches(self, requests: Sequence[Request], reach: int) -> list[list[Request]]:
        """Requests that may share a batch, like lengths together."""
        lengths = [len(r.ids) for r in requests]
        found = length_batches(
            lengths,
            self.lm.traits,
            pass_tokens=self.lm.pass_tokens,
            batch_rows=self.batch_size,
            batch_tokens=self.batch_tokens,
            reach=reach,
        )
        batches: list[list[Request]] = []
        for rows in found:
            batches.append([requests[i] for i in rows])
        return batches

    def _run(
        self, batch: list[Request], switch: Switch, options: Options, followed: Followed
    ) -> list[Reply]:
        """A batch under the gate; rows that must be read anew follow as a batch of their own."""
        place = switch.actuator.place
        if switch.gate.always and place in ("prompt", "body", "text"):
            decision = Decision(True, "always", actuator=switch.actuator.kind)
            return self._run_acted(
                [replace(r, decision=decision) for r in batch], switch, options, followed
            )
        rows = self._rows(batch, switch, options)
        replies = self._decode(batch, rows, options, followed if switch.gate.late is None else {})
        found = self._read_late(batch, switch, options, replies)
        late = {
            i
            for i, (old, new) in enumerate(zip(replies, found, strict=True))
            if new.fired and not old.decision.fired
        }
        # rows that fired and could not be rolled back in the batch: no tokens, run again
        stopped = [
            d.actuator != "none" and not r.token_ids for d, r in zip(found, replies, strict=True)
        ]
        late = {i for i in late if found[i].actuator != "none"}
        again = [i for i in range(len(batch)) if place != "none" and (i in late or stopped[i])]
        if switch.gate.late is not None:
            replies = [replace(reply, decision=d) for reply, d in zip(replies, found, strict=True)]
            for i, request in enumerate(batch):
                if followed and i not in again:
                    followed[request.index].hand(replies[i])
        if again:
            anew = [
                replace(batch[i], decision=found[i], discarded=replies[i].generated or 0)
                for i in again
            ]
            acted = self._run_acted(anew, switch, options, followed)
            for i, reply in zip(again, acted, strict=True):
                replies[i] = reply
        return replies

    def _read_late(
        self, batch: Sequence[Request], switch: Switch, options: Options, replies: Sequence[Reply]
    ) -> list[Decision]:
        """The decisions after the late reading, where the gate has one."""
        decisions = [reply.decision for reply in replies]
        if switch.gate.late is None:
            return decisions
        bodies: list[list[int]] = []
        for reply in replies:
            bodies.append([token for token in reply.token_ids if token not in options.end_ids])
        sessions = [Session(switch.gate, switch.actuator, decision) for decision in decisions]
        texts = [self.lm.prompt_text(r.ids) for r in batch]
        found = judge_late(self.lm, sessions, [r.ids for r in batch], bodies, texts)
        return [session.decision for session in found]

    def _run_acted(
        self, batch: list[Request], switch: Switch, options: Options, followed: Followed
    ) -> list[Reply]:
        """Run requests from their prompt with the actuator in force from the first token; for those
        that a policy has answered with care, that is its safety prompt."""
        done: dict[int, Reply] = {}
        for careful in (False, True):
            part = [r for r in batch if _careful(r) == careful]
            if part:
                actuator = action_for("careful", switch.actuator) if careful else switch.actuator
                replies = self._run_under(part, actuator, options, followed)
                done |= {r.index: reply for r, reply in zip(part, replies, strict=True)}
        return [done[r.index] for r in batch]

    def _run_under(
        self, batch: list[Request], actuator: Actuator, options: Options, followed: Followed
    ) -> list[Reply]:
        """Run requests from their prompt under one actuator."""
        if actuator.fixed_reply is not None:
            return [self._fixed(request, actuator.fixed_reply, followed) for request in batch]
        if actuator.place == "prompt":
            edited, rows = self._edited(
                actuator, [r.messages for r in batch], [r.limit for r in batch]
            )
            told = zip(batch, edited, rows, strict=True)
            batch = [replace(r, messages=m, ids=one.ids, vision=one.vision) for r, m, one in told]
        inner = (
            Switch(Gate(), NoAction())
            if actuator.head is None
            else Switch(Gate(always=True), actuator)
        )
        done: dict[int, Reply] = {}
        for part in self._batches(batch, options.max_new_tokens):
            with acting(self.lm, actuator, [_strength(r, actuator) for r in part]):
                replies = self._decode(part, self._rows(part, inner, options), options, followed)
            done |= {request.index: reply for request, reply in zip(part, replies, strict=True)}
        return [done[r.index] for r in batch]

    def _fixed(self, request: Request, reply_text: str, followed: Followed) -> Reply:
        """The fixed reply, cut where it is too long."""
        assert request.decision is not None
        whole = list(self.lm.tokenizer(reply_text, add_special_tokens=False)["input_ids"])
        tokens = whole[: request.limit]
        text = (
            reply_text
            if tokens == whole
            else str(self.lm.tokenizer.decode(tokens, skip_special_tokens=True))
        )
        reason: Literal["stop", "length"] = "stop" if tokens == whole else "length"
        reply = Reply(
            text, tuple(tokens), reason, request.decision, len(request.ids), request.discarded
        )
        if followed:
            followed[request.index].hand(reply)
        return reply

    def _rows(self, batch: Sequence[Request], switch: Switch, options: Options) -> Rows:
        gate, actuator = switch.gate, switch.actuator
        lengths = [len(r.ids) for r in batch]
        late = gate.watch is not None or gate.pilot > 0 or gate.answers
        texts = [self.lm.prompt_text(r.ids) for r in batch]
        in_place = late and self._can_turn_back(max(lengths), gate, options)
        apart = None
        if gate.stage1 is not None and gate.apart_points:
            apart = reread(
                self.lm, [r.ids for r in batch], gate.stage1.prober.appended, gate.apart_points
            ).states
        threads = [self._thread(r) for r in batch] if gate.answers else []
        return Rows(
            self.lm,
            gate,
            self._placed(actuator),
            lengths,
            texts,
            in_place=in_place,
            apart=apart,
            threads=threads,
        )

    def _thread(self, request: Request) -> Thread:
        return Thread(self.lm.needs_thinking(), request.opened)

    def _hider(self, request: Request, options: Options) -> Callable[[], Thread] | None:
        """What a stream follows the reply's thinking with, where that is to be hidden."""
        return (
            None
            if options.show_thinking or self.lm.thinking is None
            else lambda: self._thread(request)
        )

    def _can_turn_back(self, width: int, gate: Gate, options: Options) -> bool:
        traits, most = self.lm.traits, width + _reach(gate, options)
        return (
            traits.masks_back
            and (traits.window is None or most <= traits.window)
            and mixes(most, traits)
        )

    def _placed(self, actuator: Actuator) -> Actuator:
        """The actuator with its head where the model's head is; kept for the next call."""
        head = actuator.head
        if head is None:
            return actuator
        if actuator not in self._heads:
            wide = head.widened(self.lm.vocab_size) if self.allow_other_model else head
            self._heads[actuator] = wide.to(self.lm.head_device, self.lm.head_dtype)
        return self._heads[actuator]

    def _decode(
        self, batch: Sequence[Request], rows: Rows, options: Options, followed: Followed
    ) -> list[Reply]:
        def made(i: int, tokens: list[int]) -> Reply:
            return self._reply(
                batch[i], tokens, rows.sessions[i].decision, options, int(loop.generated[i])
            )

        prompts = [r.ids for r in batch]
        (ids, mask), vision = (
            self.lm.pad(prompts),
            self.lm.collate([r.vision for r in batch], prompts),
        )
        seeds = None if batch[0].seed is None else [r.seed for r in batch if r.seed is not None]
        sinks = [followed[r.index] for r in batch] if followed else []
        criteria = StoppingCriteriaList(options.criteria)
        if sinks:
            criteria.append(Gone(rows, sinks))
        if any(r.limit < options.max_new_tokens for r in batch):
            criteria.append(Limits(ids.shape[1], [r.limit for r in batch]))
        if options.stop:
            criteria.append(StopStringCriteria(self.lm.tokenizer, list(options.stop)))
        processors = LogitsProcessorList(options.processors)
        if options.thinking_budget is not None:
            opened, marks = [r.opened for r in batch], self.lm.needs_thinking()
            processors.append(
                ThinkingBudget(marks, options.thinking_budget, ids.shape[1], opened, rows)
            )
        loop = Loop(
            rows, seeds, Sinks(rows, sinks, made) if sinks else None, self.lm.context_length
        )
        with rows:
            tokens: Any = self.lm.model.generate(
                input_ids=ids,
                attention_mask=mask,
                **vision,
                generation_config=options.config,
                logits_processor=processors,
                stopping_criteria=criteria,
                custom_generate=loop,
            )
        return [made(i, row) for i, row in enumerate(tokens)]

    def _reply(
        self,
        request: Request,
        tokens: list[int],
        decision: Decision,
        options: Options,
        generated: int,
    ) -> Reply:
        final = request.decision or decision
        text = whole = str(self.lm.tokenizer.decode(tokens, skip_special_tokens=True))
        if not options.show_thinking and self.lm.thinking is not None:
            shown = self.lm.thinking.visible(tokens, request.opened, whole=final.refuses)
            text = str(self.lm.tokenizer.decode(shown, skip_special_tokens=True))
        cut = len(tokens) >= request.limit and tokens[-1] not in options.end_ids
        cut = cut and not any(s in whole for s in options.stop)
        reason: Literal["stop", "length"] = "length" if cut else "stop"
        return Reply(
            text, tuple(tokens), reason, final, len(request.ids), request.discarded + generated
        )


def _shared(progress: Callable[[int], None], passes: int) -> Callable[[int], None]:
    """Counts rows of ``passes`` passes and tells whole ones."""
    left = 0

    def tell(rows: int) -> None:
        nonlocal left
        done, left = divmod(left + rows, passes)
        progress(done)

    return tell


def _in_steps(progress: Callable[[int], None]) -> Callable[[int, int], None]:
    """Turns what is done so far into what is done since the last call."""
    before = 0

    def tell(done: int, total: int) -> None:
        nonlocal before
        progress(done - before)
        before = done

    return tell


def _strengths(
    given: float | Sequence[float] | None, count: int, actuator: Actuator
) -> list[float | None]:
    """One strength a prompt, None for the actuator's own.

    Raises:
        SettingError: an actuator without strengths, or a list of another length.
    """
    if given is None:
        return [None] * count
    if not actuator.per_row:
        raise SettingError(
            f"generate: strength is for switches that steer; this one's action is {actuator.kind}"
        )
    if isinstance(given, int | float):
        return [float(given)] * count
    if len(given) != count:
        raise SettingError(f"generate: {count} prompts but {len(given)} strengths")
    return [float(value) for value in given]


def _careful(request: Request) -> bool:
    """Whether a policy has the request answered under a safety prompt."""
    return request.decision is not None and request.decision.act == "careful"


def _strength(request: Request, actuator: Actuator) -> float:
    """The strength in force on one request."""
    fired = request.decision is None or request.decision.fired
    return actuator.strength_on(fired, request.strength)


def _check_apart(gate: Gate, encoded: Sequence[Encoded]) -> None:
    """Refuse images where a stage reads in a pass of its own, which is given tokens alone.

    Raises:
        DataError: such a gate, and a prompt with images.
    """
    if (gate.late is not None or gate.apart_points) and any(one.vision for one in encoded):
        raise DataError(
            "the gate reads after appended tokens, in a pass that takes no images; give text alone"
        )


def reply_room(gate: Gate, limit: int) -> int:
    """Tokens that must fit behind a prompt: a reply of ``limit``, pilot tokens, tokens that a
    prober appends."""
    first = len(gate.stage1.prober.appended) if gate.stage1 is not None else 0
    last = len(gate.late.prober.appended) if gate.late is not None else 0
    return max(limit + last, gate.pilot + 1, first)


def _reach(gate: Gate, options: Options) -> int:
    """Tokens by which a row may grow: its reply, and what may have to be thrown away before it."""
    wasted = options.max_new_tokens if gate.watch is not None or gate.answers else gate.pilot
    return wasted + options.max_new_tokens
