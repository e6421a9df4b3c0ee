"""The guarded front end of the transformers engine: requests in, choices out, each with its
decision on record.

Which switch and policy a request is served under comes from the context that the middleware sets.
Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from safeswitch.core.errors import check_choice
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Reply
from safeswitch.engines.context import CONTEXT, SCORE, UNSCREENED, ChoiceDecision, Context
from safeswitch.engines.settings import GuardSettings, switched_off
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.screen import screen
from safeswitch.models.language_model import LanguageModel
from safeswitch.serving.errors import ApiError, busy, ending
from safeswitch.serving.lanes import Lanes
from safeswitch.serving.transformers.batcher import Batcher, BatchSettings, Closed, Full, Job, Left
from safeswitch.serving.transformers.choice import FollowedChoice
from safeswitch.serving.transformers.prompts import (
    ClientPrompt,
    PromptReader,
    length_of,
    rules_for,
)
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.rules import Rules
from safeswitch.switch.switch import Switch

COLDEST = 0.01
"""Temperature below which the likeliest token is taken: dividing by less runs out of what floats
hold."""
Making = Callable[..., FollowedChoice]
"""Makes a choice of the arguments of :class:`FollowedChoice`."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen by all rows of a batch, and which are shown.

    Args:
        temperature: 0 and what is next to it take the likeliest; None: as the model says.
        top_p: Nucleus; None: as the model says.
        show_thinking: Whether replies hold the model's thinking.
        thinking_budget: Tokens after which thinking is made to end.
    """

    temperature: float | None = None
    top_p: float | None = None
    show_thinking: bool = True
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)


@dataclass(frozen=True)
class BatchKey:
    """What requests must have in common to share a batch."""

    bundle: str
    policy: str
    sampling: Sampling
    rules: Rules | None = None
    traced: int = 0
    """Number of a request that is traced, which shares a batch with no other; 0 for the rest."""


@dataclass(frozen=True, eq=False)
class Answering:
    """A request that is being answered.

    Args:
        choices: One for each prompt and reply asked for.
        replies: The reply of each, once its decision is on record.
        prompt_tokens: Of all prompts together.
        news: Set whenever a choice has something new.
        context: What the server knows of the request, and learns of it.
    """

    choices: list[FollowedChoice]
    replies: list[asyncio.Task[Reply]]
    prompt_tokens: int
    news: asyncio.Event
    context: Context

    def leave(self) -> None:
        """Wait no longer; the decisions are still put on record."""
        for choice in self.choices:
            choice.leave(Left())


class FrontEnd:
    """See the module text.

    Args:
        lm: The model.
        guard: Bundles and policy.
        batching: How requests are put together.
        max_tokens: Longest reply that may be asked for; a batch lasts as long as its longest reply.

    Raises:
        ArtifactError: a bundle that cannot be loaded, or one of another model.
    """

    def __init__(
        self, lm: LanguageModel, guard: GuardSettings, batching: BatchSettings, max_tokens: int
    ) -> None:
        self.lm, self.guard, self.max_tokens, self._queue = lm, guard, max_tokens, batching.queue
        self._engine = TransformersEngine(
            lm, batch_size=batching.batch_size, allow_other_model=guard.allow_other_model
        )
        self._switches = {
            name: Switch.from_pretrained(folder) for name, folder in guard.bundles.items()
        }
        for switch in self._switches.values():
            switch.check(lm, allow_other_model=guard.allow_other_model)
        self._ids = {name: switch.fingerprint for name, switch in self._switches.items()}
        self._policy = "off" if switched_off() else guard.policy
        self._open: set[Answering] = set()
        self._traced = itertools.count(1)
        self.prompts = PromptReader(lm, max_tokens)
        self.lanes = Lanes()
        self._batcher: Batcher[FollowedChoice] = Batcher(self._run, batching)

    @property
    def alive(self) -> bool:
        """Whether requests are taken and run."""
        return self._batcher.alive

    @property
    def policy(self) -> str:
        """Policy of requests that ask for none."""
        return self._policy

    @property
    def switches(self) -> Mapping[str, Switch]:
        """The switches by bundle, with the thresholds in force."""
        return self._switches

    async def begin(
        self,
        prompts: Sequence[ClientPrompt],
        sampling: Sampling,
        *,
        stops: Sequence[str] = (),
        n: int = 1,
        limit: int | None = None,
        seed: int | None = None,
        stream: bool = False,
        traced: Making | None = None,
    ) -> Answering:
        """Queue ``n`` replies to each prompt. All that can be wrong with them is found before.

        ``traced`` makes the choices of a request that is traced. Under ``off`` every stage still
        reads such a request, and decides nothing.

        Raises:
            ApiError: why the client cannot be served.
        """
        context = CONTEXT.get() or Context()
        bundle = context.bundle or self.guard.default
        policy = SCORE if context.score_only else context.policy or self._policy
        self._check(prompts, sampling, bundle, policy, n, limit)
        switch, size = self._switches[bundle], sum(map(length_of, prompts))
        read_under = "observe" if traced is not None and policy == "off" else policy
        sized = await self.lanes.run(
            size,
            lambda: [self.prompts.sized(p, switch, read_under, limit, context) for p in prompts],
        )
        news, first = asyncio.Event(), secrets.randbits(62) if seed is None else seed
        tokenizer = self.lm.tokenizer if stream or stops else None
        make = traced or FollowedChoice
        choices: list[FollowedChoice] = []
        texts: list[str] = []
        keys: list[BatchKey] = []
        for one in sized:
            own = context.policy_for(policy, one.text)
            alone = next(self._traced) if traced is not None else 0
            key = BatchKey(bundle, own, sampling, rules_for(context, one), alone)
            for i in range(n):
                index = len(choices)
                choices.append(
                    make(index, one.prompt, one.limit, first + i, stops, tokenizer, news)
                )
                texts.append(one.text)
                keys.append(key)
        self._submit(choices, keys)
        replies: list[asyncio.Task[Reply]] = []
        for choice, text, key in zip(choices, texts, keys, strict=True):
            replies.append(asyncio.create_task(self._conclude(choice, text, key, context)))
        answering = Answering(choices, replies, sum(one.tokens for one in sized), news, context)
        self._open.add(answering)
        for task in replies:
            task.add_done_callback(lambda _: self._forget(answering))
        return answering

    def _check(
        self,
        prompts: Sequence[ClientPrompt],
        sampling: Sampling,
        bundle: str,
        policy: str,
        n: int,
        limit: int | None,
    ) -> None:
        """Refuse what can be told to be wrong before any prompt is put into tokens.

        Raises:
            ApiError: the field at fault, and what is allowed.
        """
        if bundle not in self._switches:
            raise ApiError(400, "there is no SafeSwitch bundle of that name", param="safeswitch")
        if policy == SCORE and not self._switches[bundle].gate.screens:
            raise ApiError(400, UNSCREENED)
        if len(prompts) * n > self._queue:
            raise ApiError(
                400,
                f"{len(prompts) * n} replies are asked for; at most {self._queue} can be",
                param="n",
            )
        if limit is not None and limit > self.max_tokens:
            raise ApiError(
                400,
                f"at most {self.max_tokens} reply tokens may be asked for; got {limit}",
                param="max_tokens",
            )
        if sampling.thinking_budget is not None and self.lm.thinking is None:
            raise ApiError(
                400, "this model has no known marks of thinking", param="thinking_token_budget"
            )
        for prompt in prompts:
            self.prompts.check_length(prompt)

    def _submit(self, choices: Sequence[FollowedChoice], keys: Sequence[BatchKey]) -> None:
        """Queue all of the choices, each under its key, or none.

        Raises:
            ApiError: 429, there is no room for them; 503, the server is about to end.
        """
        jobs = [Job(key, choice) for key, choice in zip(keys, choices, strict=True)]
        try:
            self._batcher.submit(jobs)
        except Full:
            raise busy() from None
        except Closed:
            raise ending() from None

    def set_thresholds(self, bundle: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Put thresholds in force for the batches to come; returns those in force.

        Raises:
            SettingError: an unknown bundle or stage, or a value outside [0, 1].
        """
        check_choice("thresholds", "bundle", bundle, tuple(self._switches))
        switch = self._switches[bundle]
        self._switches[bundle] = replace(switch, gate=switch.gate.with_thresholds(thresholds))
        return self._switches[bundle].gate.thresholds()

    async def stop(self, grace: float) -> None:
        """Let replies end for ``grace`` seconds, then end them; return when all decisions are on
        record."""
        tasks = [task for answering in self._open for task in answering.replies]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for answering in list(self._open):
            for choice in answering.choices:
                choice.leave(ending())
        await asyncio.to_thread(self._batcher.close)
        self.lanes.close()
        await asyncio.gather(
            *(t for answering in self._open for t in answering.replies), return_exceptions=True
        )

    def _forget(self, answering: Answering) -> None:
        if all(task.done() for task in answering.replies):
            self._open.discard(answering)
        for task in answering.replies:
            if task.done() and not task.cancelled():
                task.exception()  # a client that has left asks for none

    def _run(self, jobs: Sequence[Job[FollowedChoice]]) -> None:
        """Run one batch, on the batcher's thread."""
        group = jobs[0].group
        assert isinstance(group, BatchKey)
        choices = [job.waiter for job in jobs]
        switch = self._switch(group)
        if group.policy == SCORE:
            assert switch is not None
            self._screen(choices, switch)
            return
        with ExitStack() as stack:
            for choice in choices:
                stack.enter_context(choice.reading(switch.gate if switch is not None else Gate()))
            self._engine.generate(
                [c.prompt for c in choices],
                switch,
                max_new_tokens=[c.limit for c in choices],
                seed=[c.seed for c in choices],
                followers=choices,
                **self._options(group.sampling),
            )

    def _screen(self, choices: Sequence[FollowedChoice], switch: Switch) -> None:
        """Decide on requests that are not answered; their replies are empty."""
        decisions = screen(self._engine, [choice.prompt for choice in choices], switch)
        for choice, decision in zip(choices, decisions, strict=True):
            choice.done(Reply("", (), "stop", decision, 0))

    def _switch(self, group: BatchKey) -> Switch | None:
        switch = self._switches[group.bundle]
        if group.policy == "off" and group.traced:
            return Switch(switch.gate.undecided(), NoAction(), switch.base)
        if group.rules is not None:
            switch = replace(switch, gate=switch.gate.with_rules(group.rules))
        observing = replace(switch, actuator=NoAction())
        return {"enforce": switch, SCORE: switch, "observe": observing, "off": None}[group.policy]

    def _options(self, sampling: Sampling) -> JsonObject:
        """Options of ``generate``: the client's, then the model's own, then OpenAI's defaults."""
        own = self.lm.model.generation_config
        thinking = {
            "show_thinking": sampling.show_thinking,
            "thinking_budget": sampling.thinking_budget,
        }
        if sampling.temperature == 0:
            return {"do_sample": False, **thinking}
        return {
            "do_sample": True,
            "top_k": own.top_k or 0,
            "temperature": _first_given(sampling.temperature, own.temperature, 1.0),
            "top_p": _first_given(sampling.top_p, own.top_p, 1.0),
            **thinking,
        }

    async def _conclude(
        self, choice: FollowedChoice, text: str, group: BatchKey, context: Context
    ) -> Reply:
        """The choice's reply, once its decision is on record; also where its client has left."""
        reply = await choice.reply
        if group.policy != "off":
            decision = reply.decision
            if group.policy == "enforce":
                choice.explanation = self.guard.explanation(decision, text)
            decided = ChoiceDecision(
                choice.index,
                decision,
                group.bundle,
                self._ids[group.bundle],
                group.policy,
                text,
            )
            if context.on_decision is not None:
                await context.on_decision(decided)
            context.decisions[choice.index] = decided
        if choice.reason is not None:
            raise choice.reason
        return reply


def _first_given(*values: float | None) -> float:
    """The first value that is not None; the last one is a default."""
    return next(value for value in values if value is not None)
