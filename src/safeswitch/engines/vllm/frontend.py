"""The guarded way into a vLLM engine: what it sends, what it holds back, and how a request is taken back.

A request is taken back by the reserved stop token in place of a reply token, and its prompt goes in again, on the prefix cache:
where stage 1 has flagged it, in mode ``pilot``, in which it writes the tokens that stage 2 reads; where it has fired late, in
mode ``refuse``, its reply so far dropped unseen. So another first token says that stage 1 has cleared the request,
and nobody has to be asked. A reply that ends before the gate has spoken is put behind its prompt and read once more (mode
``judge``). Nothing undecided is ever yielded.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision
from safeswitch.engines.context import CONTEXT, POLICIES, Context, Verdict
from safeswitch.engines.vllm.apart import apart
from safeswitch.engines.vllm.calls import Coalesced, alive
from safeswitch.engines.vllm.settings import KEY, GuardSettings, Task, stop_token

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


@dataclass(frozen=True)
class Plan:
    """How one bundle holds a reply back: its pilot length and its watch; whether it has a stage 2, and a stage 1 before it;
    whether it acts, and whether it reads text; the switch's fingerprint."""

    id: str
    pilot: int
    staged: bool
    asks_first: bool
    acts: bool
    text: bool
    watch_every: int | None = None
    watch_until: int | None = None

    def decided(self, count: int, pending: bool) -> int:
        """Of ``count`` tokens that have come, how many may be shown; readings up to ``count - 1`` fed tokens have been made."""
        if pending and count <= self.pilot:
            return 0
        if self.watch_every is None or (self.watch_until is not None and count > self.watch_until):
            return count
        return count - (count % self.watch_every or self.watch_every)

    def settled(self, count: int) -> bool:
        """Whether a reply of which ``count`` tokens may be shown is never refused any more."""
        return self.watch_every is None or (self.watch_until is not None and count > self.watch_until)

    def owes(self, count: int, pending: bool) -> bool:
        """Whether a reply that has ended after ``count`` tokens must be read once more."""
        watched = self.watch_every is not None and (self.watch_until is None or count <= self.watch_until)
        return count > 0 and (pending or watched)


class FrontEnd:
    """The guarded front end of one engine.

    Args:
        engine: An ``AsyncLLM``.
        generate: Its unguarded ``generate``, bound.
    """

    def __init__(self, engine: Any, generate: Generate) -> None:
        settings = GuardSettings.parse(engine.vllm_config.additional_config)
        if settings is None:
            raise SettingError("FrontEnd: the engine's additional_config has no 'safeswitch' entry")
        self.settings, self._engine, self._generate = settings, engine, generate
        self.stop = stop_token(settings, engine.vllm_config.model_config.hf_text_config)
        self.plans: dict[str, Plan] = {}
        self.concluding: set[asyncio.Task[Decision | None]] = set()
        self._calls: dict[str, Coalesced] = {
            name: Coalesced(engine, f"safeswitch_{name}") for name in ("peek", "take")
        }

    async def start(self) -> None:
        """Ask the workers what they guard.

        Raises:
            SettingError: the guard is not at work in the engine.
        """
        answers = await alive(self._engine, self._engine.collective_rpc("safeswitch_bundles"))
        found: dict[str, Any] = next((a for a in answers if a), {})
        if set(found) != set(self.settings.bundles):
            raise SettingError("SafeSwitch is not at work in this engine's workers; no request is let through")
        self.plans = {
            name: Plan(**b) for name, b in found.items()
        }

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncIterator[RequestOutput]:
        """Guarded ``AsyncLLM.generate``; intermediate outputs of kind ``CUMULATIVE`` are left out."""
        if not self.plans:
            await self.start()
        context = CONTEXT.get() or Context()
        params = copy(sampling_params)
        params.extra_args = dict(params.extra_args or {})
        policy = self._policy(params.extra_args.pop(KEY, None), context)
        if isinstance(prompt, AsyncGenerator):
            raise VLLMValidationError("SafeSwitch does not guard streamed prompts")
        if params.output_kind == RequestOutputKind.CUMULATIVE:
            params.output_kind = RequestOutputKind.FINAL_ONLY
        bundle = context.bundle or self.settings.default
        if bundle not in self.plans:
            raise VLLMValidationError(f"unknown SafeSwitch bundle {bundle!r}")
        if policy != "off":
            self._check(prompt, params)
            self._make_room(prompt, params, self.plans[bundle])
        text = self._text(prompt, context)
        task = Task(f"{request_id}-{uuid.uuid4().hex}", bundle, policy, text=text if self.plans[bundle].text else "")
        base = first = next(context.choices)
        runs = []
        for index in range(params.n):
            own = copy(params)
            own.n = 1
            own.seed = None if params.seed is None else params.seed + index
            mine = replace(task, id=f"{task.id}-{index}")
            conclude = partial(self._conclude, mine, context, first, text)
            run = self._one(prompt, own, request_id, mine, kwargs, conclude, context.tell_refusals)
            runs.append(apart(run, context, first, self.plans[bundle].settled) if context.apart else run)
            first = first if index + 1 == params.n else next(context.choices)
        outputs = runs[0] if params.n == 1 else _merged(runs, params.output_kind)
        async with aclosing(outputs):
            async for out in outputs:
                if getattr(out, "refusing", False):
                    context.refusing.add(base + out.outputs[0].index)
                yield out

    def _policy(self, asked: Any, context: Context) -> str:
        if asked is not None and (asked not in POLICIES or asked != context.policy):
            raise VLLMValidationError(f"this client may not set the SafeSwitch policy to {asked!r}")
        return context.policy or self.settings.policy

    def _check(self, prompt: Any, params: SamplingParams) -> None:
        """Refuse what would get around the guard, or what it cannot read.

        Raises:
            VLLMValidationError: the reason, for the client.
        """
        if isinstance(prompt, dict) and prompt.get("type", "token") != "token":
            raise VLLMValidationError("SafeSwitch guards requests of text only; this one has other parts")
        if params.prompt_logprobs is not None:
            raise VLLMValidationError("prompt_logprobs (echo with logprobs) is not served: they come from the unguarded head")
        if getattr(params, "thinking_token_budget", None) is not None:
            raise VLLMValidationError("thinking_token_budget is not served: it forces tokens on guarded replies")
        config = self._engine.vllm_config
        if params.seed is not None and current_platform.is_cpu() and config.scheduler_config.enable_chunked_prefill:
            raise VLLMValidationError(
                "seed is not served here: vLLM on the CPU stops when a seeded prompt is read in chunks; the operator can "
                "start it with --no-enable-chunked-prefill"
            )

    def _make_room(self, prompt: Any, params: SamplingParams, plan: Plan) -> None:
        """Leave one place in the context for the reading of an ended reply.

        Raises:
            VLLMValidationError: the prompt leaves none.
        """
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if ids is None or not (plan.staged or plan.watch_every is not None):
            return
        room = int(self._engine.vllm_config.model_config.max_model_len) - len(ids) - 1
        if room < 1:
            raise VLLMValidationError(f"the prompt of {len(ids)} tokens leaves no room for a reply and its reading")
        params.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)

    def _text(self, prompt: Any, context: Context) -> str:
        """What the server knows the conversation's text to be, or what the prompt's tokens say."""
        if context.text is not None:
            return context.text
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        return str(prompt) if ids is None else str(self._engine.get_tokenizer().decode(ids, skip_special_tokens=True))

    async def _one(
        self, prompt: Any, params: SamplingParams, request_id: str, task: Task, kwargs: dict[str, Any],
        conclude: Callable[[int | None], Coroutine[Any, Any, Decision | None]], tell: bool,
    ) -> AsyncGenerator[RequestOutput, None]:
        """One choice of one request, from submission to its decision."""
        if task.mode == "off":
            async with aclosing(self._generate(prompt, _with(params, task), request_id, **kwargs)) as outputs:
                async for out in outputs:
                    yield out
            return
        plan, streaming = self.plans[task.bundle], params.output_kind == RequestOutputKind.DELTA
        enforcing = task.mode == "enforce" and plan.acts
        if enforcing and plan.staged and not plan.asks_first:
            task = replace(task, mode="pilot")
        held: list[RequestOutput] = []
        tokens: list[int] = []
        shown, refusing, asked = 0, False, not tell
        ended: int | None = None
        try:
            while True:
                back, pending = None, task.mode == "pilot"
                sent = _with(params, task, stop=self.stop if enforcing else None)
                async with aclosing(self._generate(prompt, sent, request_id, **kwargs)) as outputs:
                    async for out in outputs:
                        if enforcing and (back := self._taken_back(out, plan, task, bool(tokens))):
                            break
                        held.append(out)
                        tokens += out.outputs[0].token_ids
                        if out.finished or not streaming:
                            continue
                        if not enforcing:
                            yield held.pop()
                            continue
                        if not asked:
                            refusing, asked = await self._calls["peek"](task.id, len(tokens)) == "refusing", True
                        while held and shown + len(held[0].outputs[0].token_ids) <= plan.decided(len(tokens), pending):
                            shown += len(held[0].outputs[0].token_ids)
                            yield _marked(held.pop(0), refusing)
                if back != "pilot":
                    break
                task = replace(task, mode="pilot")
            fired = back == "refuse"
            if not fired and tokens:
                pending = plan.staged and (pending or not enforcing) and len(tokens) <= plan.pilot
                if plan.owes(len(tokens), pending):
                    fired = await self._judge(prompt, held[-1], tokens, params, request_id, task, kwargs) and enforcing
                ended = len(tokens)
            if fired:
                held = []
                refuse = _with(params, replace(task, mode="refuse"))
                async with aclosing(self._generate(prompt, refuse, request_id, **kwargs)) as outputs:
                    async for out in outputs:
                        if shown and streaming:
                            out.outputs[0].text, shown = "\n\n" + out.outputs[0].text, 0
                        if out.finished:
                            held.append(out)
                        else:
                            yield _marked(out, True)
        finally:
            decision = await self._shielded(conclude(ended))
        if decision is None and tokens:
            raise SettingError("SafeSwitch: the engine has no verdict on this request; its reply is withheld")
        if enforcing and not fired and decision is not None and decision.fired and decision.token_index > 0:
            raise SettingError("SafeSwitch: the gate has fired on this reply after it had ended; it is withheld")
        refusing = enforcing and decision is not None and decision.fired
        for out in held:
            if out.finished and decision is not None:
                out.safeswitch = decision
            yield _marked(out, refusing)

    def _taken_back(self, out: RequestOutput, plan: Plan, task: Task, begun: bool) -> Literal["pilot", "refuse"] | None:
        """The mode in which a request goes in again after ``out``, which holds the reserved token; None where it does not."""
        new = out.outputs[0]
        if self.stop not in new.token_ids and new.stop_reason != self.stop:
            return None
        first = not begun and next(iter(new.token_ids), self.stop) == self.stop
        return "pilot" if first and plan.staged and task.mode == "enforce" else "refuse"

    async def _shielded(self, work: Coroutine[Any, Any, Decision | None]) -> Decision | None:
        """``work`` to its end, even when whoever waits for it is cancelled."""
        running = asyncio.create_task(work)
        self.concluding.add(running)
        running.add_done_callback(self.concluding.discard)
        return await asyncio.shield(running)

    async def _conclude(self, task: Task, context: Context, choice: int, text: str, ended: int | None) -> Decision | None:
        """Take the decision on a reply of ``ended`` tokens from the workers and tell the server, before the reply's last output
        leaves; also of a request that its client has left (None)."""
        found = await self._calls["take"](task.id, ended)
        if found is None:
            return None
        if task.mode == "observe":
            found = {**found, "actuator": "none"}
        decision = Decision(**found)
        context.decisions[choice] = Verdict(
            choice, decision, task.bundle, self.plans[task.bundle].id, task.mode, text
        )
        if context.on_decision is not None:
            await context.on_decision(context.decisions[choice])
        return decision

    async def _judge(
        self, prompt: Any, last: RequestOutput, tokens: list[int], params: SamplingParams, request_id: str, task: Task,
        kwargs: dict[str, Any],
    ) -> bool:
        """Read an ended reply once more, behind its prompt; whether it fires."""
        if last.prompt_token_ids is None:
            return True
        salt = prompt.get("cache_salt") if isinstance(prompt, dict) else None
        whole = tokens_input([*last.prompt_token_ids, *tokens], cache_salt=salt)
        once = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        asked = _with(once, replace(task, mode="judge", fed=len(tokens)), stop=self.stop)
        answer: list[int] = []
        async with aclosing(self._generate(whole, asked, request_id, **kwargs)) as outputs:
            async for out in outputs:
                answer += out.outputs[0].token_ids
        return self.stop in answer


def _marked(out: RequestOutput, refusing: bool) -> RequestOutput:
    """``out``, with a word on whether it is part of a refusal."""
    out.refusing = refusing
    return out


def _with(params: SamplingParams, task: Task, stop: int | None = None) -> SamplingParams:
    """A copy of ``params`` that carries ``task`` to the worker, and ends at the reserved token."""
    own = params.clone()
    own.extra_args = {**(params.extra_args or {}), KEY: task.to_args()}
    if stop is not None:
        own.stop_token_ids = [*(own.stop_token_ids or []), stop]
    return own


async def _merged(
    runs: list[AsyncGenerator[RequestOutput, None]], kind: RequestOutputKind
) -> AsyncGenerator[RequestOutput, None]:
    """Outputs of several choices as vLLM gives them: all at the end, or each as it comes."""
    queue: asyncio.Queue[tuple[int, RequestOutput | BaseException | None]] = asyncio.Queue()

    async def pump(index: int, run: AsyncGenerator[RequestOutput, None]) -> None:
        try:
            async with aclosing(run):
                async for out in run:
                    out.outputs[0].index = index
                    await queue.put((index, out))
            await queue.put((index, None))
        except BaseException as error:
            await queue.put((index, error))
            raise

    tasks = [asyncio.create_task(pump(i, run)) for i, run in enumerate(runs)]
    finals: dict[int, RequestOutput] = {}
    left = len(runs)
    try:
        while left:
            index, out = await queue.get()
            if isinstance(out, BaseException):
                raise out
            if out is None:
                left -= 1
                continue
            out.finished = out.finished and len(finals) == len(runs) - 1
            if kind == RequestOutputKind.DELTA:
                if out.outputs[0].finish_reason is not None:
                    finals[index] = out
                yield out
            else:
                finals[index] = out
        if kind != RequestOutputKind.DELTA:
            whole = finals[0]
            whole.outputs = [finals[i].outputs[0] for i in range(len(runs))]
            whole.finished = True
            yield whole
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
