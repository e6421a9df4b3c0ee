"""The transformers engine: whole batches, one prefill, rows that switch are rolled back inside the
batch.

What cannot be rolled back exactly (recurrent state, a sliding window that the reply outgrows, an
edited prompt, steered states) is run again from its prompt: slower, and correct. A call reads its
options (``options.py``) and prompts (``requests.py``, ``prefill.py``), and runs them in batches
(``batch.py``, ``decode.py``, ``rows.py``). Knows nothing of labels or methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Prompt, ReadPoint, Reply
from safeswitch.engines.requests import row_limits, row_seeds
from safeswitch.engines.transformers.batch import BatchRunner, thinking_of
from safeswitch.engines.transformers.collect import (
    read_states,
    reply_and_read,
    whole_prompts,
)
from safeswitch.engines.transformers.options import Options, make_options
from safeswitch.engines.transformers.prompt_end import judge_without_prefill
from safeswitch.engines.transformers.requests import Request, make_requests, row_strengths
from safeswitch.engines.transformers.streaming import (
    Follower,
    Release,
    RowSink,
    Stream,
    StreamerFollower,
)
from safeswitch.models.batching import BATCH_TOKENS, length_batches
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Actuator, HeadActuator, NoAction
from safeswitch.switch.engine import EngineFacts, MeasuredEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


class TransformersEngine(MeasuredEngine):
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

    @property
    def facts(self) -> EngineFacts:
        """Two batches at a time, so that rows of like length find each other."""
        lm = self.lm
        return EngineFacts(
            lm.model_id,
            lm.fingerprint,
            2 * self.batch_size,
            lm.revision,
            lm.chat_template,
            str(lm.model.dtype),
            str(lm.device),
            lm.num_layers,
            lm.context_length,
        )

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
        if followers is not None and len(followers) != len(prompts):
            raise SettingError(f"generate: {len(prompts)} prompts but {len(followers)} followers")
        limits = row_limits(max_new_tokens, len(prompts))
        chosen = make_options(
            self.lm.model.generation_config,
            limits,
            stop_strings,
            options,
            self.lm.pad_token_id,
            show_thinking,
            thinking_budget,
        )
        switch = switch or Switch(Gate(), NoAction())
        if switch.gate.answers or thinking_budget is not None:
            self.lm.needs_thinking()
        strengths = row_strengths(strength, len(prompts), switch.actuator)
        seeds = row_seeds(seed, len(prompts))
        with self.lm.lock, torch.no_grad():
            switch.check(self.lm, allow_other_model=self.allow_other_model)
            requests = make_requests(self.lm, prompts, switch, limits, seeds, strengths)
            requests = judge_without_prefill(self.lm, requests, switch)
            if streamer is not None:
                followers = [StreamerFollower(streamer, requests[0].ids)]
            sinks = self._sinks(requests, followers or (), chosen)
            placed = self._placed(switch.actuator)
            runner = BatchRunner(self.lm, switch, placed, chosen, sinks, self._batches)
            return runner.run(requests, progress)

    def _sinks(
        self, requests: Sequence[Request], followers: Sequence[Follower], options: Options
    ) -> dict[int, RowSink]:
        """What holds each followed reply back until it is decided, by the request's index."""
        hides = not options.show_thinking and self.lm.thinking is not None
        sinks: dict[int, RowSink] = {}
        for request, follower in zip(requests, followers, strict=False):
            thread = partial(thinking_of, self.lm, request) if hides else None
            sinks[request.index] = RowSink(follower, thread)
        return sinks

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """The untouched model's greedy replies, and states at ``points`` (float32, on the host),
        read in the pass that replies.

        ``answer`` points are read in a second, teacher-forced pass: where the answer begins is
        known only when the reply is.

        Args:
            prompts: Texts, message lists or examples.
            points: What to read; a reply that ends before a pilot point gives the state of its last
                token.
            max_new_tokens: Longest reply; 0 gives no replies and reads prompts alone.
            progress: Called with the number of prompts done since the last call.

        Raises:
            ActivationError: states that are not finite.
            SettingError: no prompts, no points, points that do not exist, or ``answer`` points and
                a model without known thinking marks.
        """
        if not prompts:
            raise SettingError("collect: there must be one prompt or more; got none")
        if max_new_tokens and not any(p.position.kind == "answer" for p in points):
            return self._reply_and_read(prompts, points, max_new_tokens, progress)
        passes = 2 if max_new_tokens else 1
        part = None if progress is None else whole_prompts(progress, passes)
        replies: list[Reply] = []
        if max_new_tokens:
            replies = self.generate(
                prompts, max_new_tokens=max_new_tokens, do_sample=False, progress=part
            )
        with self.lm.lock:
            return replies, read_states(self.lm, prompts, replies, points, part)

    def _reply_and_read(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        max_new_tokens: int,
        progress: Callable[[int], None] | None,
    ) -> tuple[list[Reply], Activations]:
        """Replies, and what is read while they are written."""
        n = len(prompts)
        limits = [max_new_tokens] * n
        own, pad = self.lm.model.generation_config, self.lm.pad_token_id
        options = make_options(own, limits, (), {"do_sample": False}, pad)
        untouched = Switch(Gate(), NoAction())
        none = [None] * n
        with self.lm.lock, torch.no_grad():
            requests = make_requests(self.lm, prompts, untouched, limits, none, none)
            runner = BatchRunner(self.lm, untouched, untouched.actuator, options, {}, self._batches)
            return reply_and_read(runner, requests, points, progress)

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

    def _batches(self, requests: Sequence[Request], reach: int) -> list[list[Request]]:
        """Requests that may share a batch, like lengths together."""
        found = length_batches(
            [len(request.ids) for request in requests],
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

    def _placed(self, actuator: Actuator) -> Actuator:
        """The actuator with its head where the model's head is; kept for the next call."""
        head = actuator.head
        if head is None:
            return actuator
        if actuator not in self._heads:
            wide = head.widened(self.lm.vocab_size) if self.allow_other_model else head
            self._heads[actuator] = wide.to(self.lm.head_device, self.lm.head_dtype)
        return self._heads[actuator]
