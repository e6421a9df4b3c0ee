"""One choice of one request in a guarded vLLM engine, from its submission to its decision.

::

    constrained, and a watch: first a run of ours that nobody sees ── fires ──► refusal
                                   │ cleared
                                   ▼
    client's run ──first token is another──► clear of stage 1 (or, where that is the only stage, the
      │                                        refusal head's own from here), shown as it is decided
      │ first token is the reserved one          │ ended before the gate has spoken ──► judged
      ├─ constrained, or no stage 2 ─────┐       │ later token is the reserved one       │
      └─ else: pilot run (ours)          │       ▼                                       │
           │ cleared: shown, as above    └──► refusal (ours) ◄───────── fires ───────────┘
           └ reserved token: fires ───────────►

A bundle with a stage 2 and no stage 1 begins with the pilot run.

Rolled back means: the worker has put the reserved stop token in place of a reply token, the tokens
so far are dropped unseen, and the same prompt is submitted again, brought back by the prefix cache
(but where means over it are read anew).
Nothing undecided is ever yielded. ``sampling.py`` says what a run *of ours* takes from the
client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision
from safeswitch.engines.context import Context, Refusal
from safeswitch.engines.settings import KEY
from safeswitch.engines.vllm.settings import Task

if TYPE_CHECKING:
    from vllm.inputs import PromptType


Outputs = AsyncGenerator[RequestOutput, None]
_READ_NO_PROMPT = ("refuse", "judge")
"""Modes of runs whose prompt has been read by then."""
Submit = Callable[[Any, SamplingParams], Outputs]
"""The engine's unguarded ``generate`` for one request: prompt and sampling in, outputs out."""


@dataclass(frozen=True)
class BundlePlan:
    """What the front end must know of one bundle to hold a reply back.

    Args:
        id: The switch's fingerprint.
        pilot: Reply tokens that stage 2 reads.
        staged: Whether there is a stage 2.
        asks_first: Whether there is a stage 1.
        changes_replies: Whether the bundle has a refusal head.
        text: Whether a reader needs the request's text.
        watch_every: Reply tokens between two readings of the watch; None without one.
        watch_until: Reply tokens after which the watch reads no more.
        whole: Whether every token of a prompt must be computed, since means over them are read.
    """

    id: str
    pilot: int
    staged: bool
    asks_first: bool
    changes_replies: bool
    text: bool
    watch_every: int | None = None
    watch_until: int | None = None
    whole: bool = False

    def decided(self, count: int, pending: bool) -> int:
        """Of ``count`` tokens that have come, how many may be shown.

        The worker reads a token when it is fed, so readings have been made up to ``count - 1``.
        """
        if pending and count <= self.pilot:
            return 0
        over = self.watch_until is not None and count > self.watch_until
        if self.watch_every is None or over:
            return count
        return count - (count % self.watch_every or self.watch_every)

    def settled(self, count: int) -> bool:
        """Whether a reply of which ``count`` tokens may be shown is never refused any more."""
        over = self.watch_until is not None and count > self.watch_until
        return self.watch_every is None or over

    def owes(self, count: int, pending: bool) -> bool:
        """Whether a reply that has ended after ``count`` tokens must be read once more."""
        watched = self.watch_every is not None
        if watched and self.watch_until is not None:
            watched = count <= self.watch_until
        return count > 0 and (pending or watched)


@dataclass(frozen=True)
class Runs:
    """What the runs of one choice are sampled with.

    Args:
        client: Everything that the client asked for.
        guarded: What pilot, judge and refusal take of it.
        bent_by: Names of the parameters that bend the client's run; empty where none does.
    """

    client: SamplingParams
    guarded: SamplingParams
    bent_by: tuple[str, ...]


class GuardedChoice:
    """See the module text.

    Args:
        submit: Sends one run to the engine.
        prompt: The prompt as vLLM was given it.
        runs: Sampling of the runs.
        task: What the worker is to do with the request.
        plan: Of the request's bundle.
        stop: The reserved token.
        conclude: Takes the decision on a reply of so many tokens (None: its client has left) from
            the workers and puts it on record; awaited exactly once, whatever happens.
        peek: How the request stands in the worker after so many tokens; None where nobody asks.
        explain: What is put behind a refusal's text.
    """

    def __init__(
        self,
        submit: Submit,
        prompt: PromptType,
        runs: Runs,
        task: Task,
        plan: BundlePlan,
        stop: int,
        conclude: Callable[[int | None], Awaitable[Decision | None]],
        peek: Callable[[str, int], Awaitable[str | None]] | None,
        explain: Callable[[Decision], str] = lambda decision: "",
    ) -> None:
        self._submit, self._prompt, self._runs = submit, prompt, runs
        self._task, self._plan, self._stop = task, plan, stop
        self._conclude, self._peek, self._explain = conclude, peek, explain
        self._enforcing = task.mode == "enforce" and plan.changes_replies
        self._streaming = runs.client.output_kind == RequestOutputKind.DELTA
        self._held: list[RequestOutput] = []
        self._tokens: list[int] = []
        self._shown = 0
        self._refusing = False
        self._fired = False
        self._ended: int | None = None

    async def outputs(self) -> Outputs:
        """The choice's outputs, each once it is decided; the last one carries the decision."""
        if self._enforcing and self._plan.staged and not self._plan.asks_first:
            self._task = replace(self._task, mode="pilot")
        try:
            if self._enforcing and self._runs.bent_by and self._plan.watch_every is not None:
                self._fired = await self._fires_unbent()
            if not self._fired:
                async with aclosing(self._until_rolled_back()) as reply:
                    async for out in reply:
                        yield out
            if not self._fired and self._tokens:
                self._fired = await self._judged() and self._enforcing
                self._ended = len(self._tokens)
            if self._fired:
                async with aclosing(self._refusal()) as refusal:
                    async for out in refusal:
                        yield out
        finally:
            decision = await self._conclude(self._ended)
        self._check(decision)
        for out in self._held:
            if out.finished and decision is not None:
                out.safeswitch = decision
            # a refusal that came whole, before anybody had asked how the request stands
            refuses = self._enforcing and decision is not None and decision.refuses
            if out.finished and refuses and decision is not None:
                out.outputs[0].text += self._explain(decision)
            yield marked(out, refuses)

    async def _fires_unbent(self) -> bool:
        """Whether the gate fires on what the model writes of itself, without the constraints.

        The watch knows replies as the model begins them; a grammar could keep from it what it
        would fire on. So a constrained request is first read as far as the watch reads, in a run
        of ours that nobody sees.
        """
        own = self._runs.guarded.clone()
        own.output_kind = RequestOutputKind.FINAL_ONLY
        until = self._plan.watch_until
        if until is not None:
            own.max_tokens = min(own.max_tokens or until + 1, until + 1)
        async with aclosing(self._run(own, self._task, stops=True)) as outputs:
            async for out in outputs:
                if self._is_rolled_back(out):
                    return True
                self._held, self._tokens = [out], list(out.outputs[0].token_ids)
        fires = await self._judged()
        # the client's run begins anew from the prompt, and so does what the worker knows of it
        self._held, self._tokens = [], []
        return fires

    async def _until_rolled_back(self) -> Outputs:
        """The client's run, or the pilot run; ends with the reply, or with ``_fired``."""
        while True:
            pilot, back = self._task.mode == "pilot", None
            sampling = self._runs.guarded if pilot else self._runs.client
            async with aclosing(self._run(sampling, self._task, stops=self._enforcing)) as outputs:
                async for out in outputs:
                    if self._enforcing and self._is_rolled_back(out):
                        back = self._next_mode(out)
                        break
                    self._held.append(out)
                    self._tokens += out.outputs[0].token_ids
                    async for decided in self._decided(out, pilot):
                        yield decided
            if back != "pilot":
                self._fired = back == "refuse"
                return
            self._task = replace(self._task, mode="pilot")

    async def _decided(self, out: RequestOutput, pending: bool) -> Outputs:
        """Outputs of a stream that may go now."""
        if out.finished or not self._streaming:
            return
        if not self._enforcing:
            yield self._held.pop()
            return
        if self._peek is not None:
            standing = await self._peek(self._task.id, len(self._tokens))
            self._refusing, self._peek = standing == "refusing", None
        may_go = self._plan.decided(len(self._tokens), pending)
        while self._held and self._shown + len(self._held[0].outputs[0].token_ids) <= may_go:
            self._shown += len(self._held[0].outputs[0].token_ids)
            yield marked(self._held.pop(0), self._refusing)

    def _is_rolled_back(self, out: RequestOutput) -> bool:
        new = out.outputs[0]
        return self._stop in new.token_ids or new.stop_reason == self._stop

    def _next_mode(self, out: RequestOutput) -> Literal["pilot", "refuse"]:
        """The mode in which a request that is rolled back is submitted again."""
        first = not self._tokens and next(iter(out.outputs[0].token_ids), self._stop) == self._stop
        waits = first and self._plan.staged and self._task.mode == "enforce"
        # stage 2 reads how the model would begin by itself, which says nothing of a reply that
        # the client's constraints then force: for those stage 1 speaks alone
        return "pilot" if waits and not self._runs.bent_by else "refuse"

    async def _judged(self) -> bool:
        """Whether a reply that ended before the gate had spoken fires when it is read again."""
        waits = self._plan.staged and (self._task.mode == "pilot" or not self._enforcing)
        pending = waits and len(self._tokens) <= self._plan.pilot
        if not self._plan.owes(len(self._tokens), pending):
            return False
        last = self._held[-1]
        if last.prompt_token_ids is None:
            return True
        salt = self._prompt.get("cache_salt") if isinstance(self._prompt, dict) else None
        whole = tokens_input([*last.prompt_token_ids, *self._tokens], cache_salt=salt)
        once = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        task = replace(self._task, mode="judge", fed=len(self._tokens))
        answer: list[int] = []
        async with aclosing(self._run(once, task, stops=True, prompt=whole)) as outputs:
            async for out in outputs:
                answer += out.outputs[0].token_ids
        return self._stop in answer

    async def _refusal(self) -> Outputs:
        """The refusal, from the prompt's end; its last output is held for the decision."""
        self._held = []
        begun = self._shown > 0 and self._streaming
        task = replace(self._task, mode="refuse")
        async with aclosing(self._run(self._runs.guarded, task)) as outputs:
            async for out in outputs:
                if begun:
                    out.outputs[0].text, begun = "\n\n" + out.outputs[0].text, False
                if out.finished:
                    self._held.append(out)
                else:
                    yield marked(out, True)

    def _run(
        self,
        params: SamplingParams,
        task: Task,
        stops: bool = False,
        prompt: PromptType | None = None,
    ) -> Outputs:
        """Submit one run; with ``stops`` it ends at the reserved token."""
        own = params.clone()
        own.extra_args = {**(params.extra_args or {}), KEY: task.to_args()}
        if self._plan.whole and task.mode not in _READ_NO_PROMPT:
            own.skip_reading_prefix_cache = True
        if stops:
            own.stop_token_ids = [*(own.stop_token_ids or []), self._stop]
        return self._submit(self._prompt if prompt is None else prompt, own)

    def _check(self, decision: Decision | None) -> None:
        """Withhold a reply whose decision is missing, or says other than what was done.

        Raises:
            SettingError: in both cases.
        """
        if decision is None and self._tokens:
            raise SettingError(
                "SafeSwitch: the engine has no decision on this request; its reply is withheld"
            )
        in_reply = decision is not None and decision.refuses and decision.token_index > 0
        if self._enforcing and not self._fired and in_reply:
            raise SettingError(
                "SafeSwitch: the gate has fired on this reply after it had ended; it is withheld"
            )


def marked(out: RequestOutput, refusing: bool) -> RequestOutput:
    """``out``, with a word on whether it is part of a refusal."""
    out.refusing = refusing
    return out


async def separate_refusals(
    run: Outputs,
    context: Context,
    choice: int,
    settled: Callable[[int], bool],
) -> Outputs:
    """One choice's outputs, with those of a refusal emptied: what they held goes into
    ``context.refusals``, and to the client beside vLLM's reply, so that no parser of tool calls,
    reasoning or JSON ever reads a refusal.

    A structured reply leaves only once it is certain that it is not refused, since half a tool call
    or half an object cannot be rolled back.

    Args:
        run: The guarded outputs of one choice, each marked with whether it is part of a refusal.
        context: Of the request in hand.
        choice: Number of the choice.
        settled: Whether a reply of so many tokens is never refused any more.
    """
    held: list[RequestOutput] = []
    count = 0
    async with aclosing(run) as outputs:
        async for out in outputs:
            # None: the request is not guarded
            refusing: bool | None = getattr(out, "refusing", None)
            if refusing:
                held = []
                _take(out, context.refusals.setdefault(choice, Refusal()), count > 0)
                yield out
                continue
            held.append(out)
            count += len(out.outputs[0].token_ids)
            if context.structured and refusing is not None and not (out.finished or settled(count)):
                continue
            for one in held:
                yield one
            held = []


def _take(out: RequestOutput, refusal: Refusal, begun: bool) -> None:
    """Move what an output holds of a refusal into ``refusal``; behind a reply that had ``begun``,
    without the gap between."""
    written = out.outputs[0]
    text = written.text
    if begun and not refusal.tokens:
        text = text.removeprefix("\n\n")
    refusal.text += text
    refusal.tokens += len(written.token_ids)
    refusal.ended = out.finished
    written.text, written.token_ids = "", []
    written.logprobs = None if written.logprobs is None else []
