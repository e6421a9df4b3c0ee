"""The guarded way into a vLLM engine: what is let in, and how each request is run.

Every text-producing endpoint of vLLM's server, and ``VLLMEngine``, goes through
:meth:`FrontEnd.generate`. It refuses what would get around the guard, works out which of the
client's sampling parameters act where (``sampling.py``), and runs each choice (``choice.py``).
To roll back, the worker emits a reserved token and the prompt is submitted again.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision
from safeswitch.engines.context import CONTEXT, POLICIES, SCORE, UNSCREENED, ChoiceDecision, Context
from safeswitch.engines.settings import KEY, GuardSettings
from safeswitch.engines.vllm.calls import Coalesced, alive
from safeswitch.engines.vllm.choice import (
    BundlePlan,
    GuardedChoice,
    Outputs,
    Runs,
    Submit,
    separate_refusals,
)
from safeswitch.engines.vllm.sampling import SEEDS, SamplingRules
from safeswitch.engines.vllm.settings import Task, stop_token
from safeswitch.models.generation_prompt import GenerationPrompt
from safeswitch.models.prompt_text import PromptText, is_lost

if TYPE_CHECKING:
    from vllm.inputs import PromptType
    from vllm.v1.engine.async_llm import AsyncLLM


Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


class _Admitted(NamedTuple):
    """A request that has been checked.

    Args:
        prompt: For the engine.
        params: What the client asks for.
        task: What the workers are to do with it.
        plan: Of its bundle.
        text: What the prompt's tokens say.
        context: What the server knows of it.
    """

    prompt: PromptType
    params: SamplingParams
    task: Task
    plan: BundlePlan
    text: str
    context: Context


class FrontEnd:
    """The guarded front end of one engine.

    Args:
        engine: An ``AsyncLLM``.
        generate: Its unguarded ``generate``, bound.
        chat_template: The server's own, None for the tokenizer's.
    """

    def __init__(
        self, engine: AsyncLLM, generate: Generate, chat_template: str | None = None
    ) -> None:
        config = engine.vllm_config
        settings = GuardSettings.parse(config.additional_config)
        if settings is None:
            raise SettingError("FrontEnd: the engine's additional_config has no 'safeswitch' entry")
        self.settings, self._engine, self._generate = settings, engine, generate
        self.stop = stop_token(settings, config.model_config.hf_text_config)
        self.plans: dict[str, BundlePlan] = {}
        self.concluding: set[asyncio.Task[Decision | None]] = set()
        self._sampling = SamplingRules(config.model_config.get_diff_sampling_param())
        self._peek = Coalesced(engine, "safeswitch_peek")
        self._take = Coalesced(engine, "safeswitch_take")
        tokenizer = engine.get_tokenizer()
        self._prompt_text = PromptText(tokenizer)
        self._reply_mark = GenerationPrompt.of(tokenizer, chat_template)

    @property
    def seeds_are_fatal(self) -> bool:
        """Whether one request with a seed would end the engine."""
        chunked = self._engine.vllm_config.scheduler_config.enable_chunked_prefill
        return bool(current_platform.is_cpu() and chunked)

    async def start(self) -> None:
        """Ask the workers what they guard.

        Raises:
            SettingError: the guard is not at work in the engine.
        """
        answers = await alive(self._engine, self._engine.collective_rpc("safeswitch_bundles"))
        found: JsonObject = next((a for a in answers if a), {})
        if set(found) != set(self.settings.bundles):
            raise SettingError(
                "SafeSwitch is not at work in this engine's workers; no request is let through"
            )
        self.plans = {name: BundlePlan(**b) for name, b in found.items()}

    async def generate(
        self, prompt: PromptType, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> Outputs:
        """Guarded ``AsyncLLM.generate``; a ``CUMULATIVE`` request gets its last output alone."""
        if not self.plans:
            await self.start()
        context = CONTEXT.get() or Context()
        request = self._admitted(prompt, sampling_params, request_id, context)
        submit = partial(self._submit, request_id, kwargs)
        if request.task.mode == SCORE:
            yield await self._screened(request, next(context.choices), submit)
            return
        n = request.params.n
        numbers = [next(context.choices) for _ in range(n)]
        choices: list[Outputs] = []
        for index, number in enumerate(numbers):
            run = self._choice(request, index, number, submit)
            if context.separate_refusals:
                run = separate_refusals(run, context, number, request.plan.settled)
            choices.append(run)
        outputs = choices[0] if n == 1 else _merged(choices, request.params.output_kind)
        async with aclosing(outputs):
            async for out in outputs:
                if getattr(out, "refusing", False):
                    context.refusing.add(numbers[0] + out.outputs[0].index)
                yield out

    def _admitted(
        self, prompt: PromptType, sampling_params: SamplingParams, request_id: str, context: Context
    ) -> _Admitted:
        """The request as it is run, once everything that can be wrong with it has been checked.

        Raises:
            VLLMValidationError: why it is not served.
        """
        params = copy(sampling_params)
        params.extra_args = dict(params.extra_args or {})
        policy = self._policy(params.extra_args.pop(KEY, None), context)
        if isinstance(prompt, AsyncGenerator):
            raise VLLMValidationError("SafeSwitch does not guard streamed prompts")
        if isinstance(prompt, str):
            prompt = tokens_input(self._engine.get_tokenizer().encode(prompt))
        if params.output_kind == RequestOutputKind.CUMULATIVE:
            params.output_kind = RequestOutputKind.FINAL_ONLY
        bundle = context.bundle or self.settings.default
        if bundle not in self.plans:
            raise VLLMValidationError(f"unknown SafeSwitch bundle {bundle!r}")
        plan = self.plans[bundle]
        text = self._prompt_text(_ids(prompt) or ())
        policy = context.policy_for(policy, text)
        if policy != "off":
            self._check_prompt(prompt, context)
            self._check_system(text, context)
        if policy == SCORE:
            if not plan.asks_first:
                raise VLLMValidationError(UNSCREENED)
        elif policy != "off":
            self._check_sampling(params, policy, plan)
            self._limit(prompt, params, plan, context)
        # An id of our own: nothing keeps two clients from choosing the same request id.
        name = f"{request_id}-{uuid.uuid4().hex}"
        rules = "" if context.rules is None else json.dumps(context.rules.to_dict())
        task = Task(name, bundle, policy, text=text if plan.text else "", rules=rules)
        return _Admitted(prompt, params, task, plan, text, context)

    async def _screened(self, request: _Admitted, number: int, submit: Submit) -> RequestOutput:
        """Have stage 1 read a prompt; the one token that vLLM wants to write is withheld.

        Args:
            request: The request.
            number: Of the choice that the decision is put on record for.
            submit: Sends one run to the engine.
        """
        task = request.task
        once = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={KEY: task.to_args()},
            skip_reading_prefix_cache=request.plan.whole or None,
        )
        decision = None
        try:
            async with aclosing(submit(request.prompt, once)) as outputs:
                last = [out async for out in outputs][-1]
        finally:
            conclude = self._conclude(task, request.context, number, request.text, 0)
            decision = await self._shielded(conclude)
        if decision is None:
            raise SettingError("SafeSwitch: the engine has no decision on this request")
        last.outputs[0].text = ""
        last.outputs[0].token_ids = []
        return last

    def _choice(self, request: _Admitted, index: int, number: int, submit: Submit) -> Outputs:
        """The outputs of one choice; those of the engine as they are where nothing guards.

        Args:
            request: The request.
            index: Of the choice among the request's own.
            number: Of the choice in the client's reply, which may hold several prompts' choices.
            submit: Sends one run to the engine.
        """
        params = copy(request.params)
        params.n = 1
        params.seed = None if params.seed is None else params.seed + index
        task = replace(request.task, id=f"{request.task.id}-{index}")
        if task.mode == "off":
            off = params.clone()
            off.extra_args = {**(params.extra_args or {}), KEY: task.to_args()}
            return submit(request.prompt, off)
        bent_by = tuple(self._sampling.bent_by(params))
        runs = Runs(params, self._sampling.guarded(params), bent_by)

        async def conclude(ended: int | None) -> Decision | None:
            # Shielded: the decision is put on record also where the client leaves meanwhile.
            work = self._conclude(task, request.context, number, request.text, ended)
            return await self._shielded(work)

        peek = self._peek if request.context.tell_refusals else None
        constrained = replace(task, constrained=bool(bent_by))
        explain = partial(self._explanation, request.text)
        return GuardedChoice(
            submit,
            request.prompt,
            runs,
            constrained,
            request.plan,
            self.stop,
            conclude,
            peek,
            explain,
        ).outputs()

    def _explanation(self, text: str, decision: Decision) -> str:
        return self.settings.explanation(decision, text)

    def _submit(
        self, request_id: str, kwargs: JsonObject, prompt: PromptType, params: SamplingParams
    ) -> Outputs:
        """One run of a request through the engine as vLLM made it."""
        return self._generate(prompt, params, request_id, **kwargs)

    def _policy(self, wanted: object, context: Context) -> str:
        if wanted is not None and (wanted not in POLICIES or wanted != context.policy):
            raise VLLMValidationError(
                f"this client may not set the SafeSwitch policy to {wanted!r}"
            )
        if context.score_only:
            return SCORE
        return context.policy or self.settings.policy

    def _check_prompt(self, prompt: PromptType, context: Context) -> None:
        """Refuse a prompt that the guard cannot read, or that hides its request from it.

        Raises:
            VLLMValidationError: the reason, for the client.
        """
        if isinstance(prompt, dict) and prompt.get("type", "token") != "token":
            raise VLLMValidationError(
                "SafeSwitch guards requests of text only; this one has other parts"
            )
        ids = _ids(prompt)
        if ids is None:
            raise VLLMValidationError("SafeSwitch guards prompts that are text or tokens")
        # whatever field or template brought it about: behind the mark where a reply begins there
        # may be nothing, since stage 1 reads the last token
        if context.chat and not self._reply_mark.ends:
            raise VLLMValidationError(
                "SafeSwitch cannot tell from this model's chat template where a reply begins, "
                "and so not whether one has been begun; chat is not served"
            )
        if context.chat and not self._reply_mark.closes(ids):
            raise VLLMValidationError(
                "prefilled replies are not served: the conversation must end in a turn of the "
                "user's, or in a tool's"
            )
        if self._reply_mark.is_continued(ids):
            raise VLLMValidationError(
                "prefilled replies are not served: the prompt continues behind the mark that begins "
                "a reply"
            )

    def _check_system(self, text: str, context: Context) -> None:
        """Refuse a conversation whose system text the chat template has dropped.

        Raises:
            VLLMValidationError: it is not in the prompt's ``text``.
        """
        if any(is_lost(turn, text) for turn in context.system):
            raise VLLMValidationError(
                "this model's chat template drops the system turn; put its text into the user's"
            )

    def _check_sampling(self, params: SamplingParams, policy: str, plan: BundlePlan) -> None:
        """Refuse sampling parameters that the guard cannot answer for.

        Raises:
            VLLMValidationError: the reason, for the client.
        """
        self._sampling.refuse_unserved(params)
        if params.seed is not None and self.seeds_are_fatal:
            raise VLLMValidationError(SEEDS, parameter="seed")
        bent_by = self._sampling.bent_by(params)
        if policy == "enforce" and plan.staged and not plan.asks_first and bent_by:
            raise VLLMValidationError(
                f"{', '.join(bent_by)} cannot be served: this switch reads how a reply begins, "
                "which says nothing of one that is bent"
            )
        allowed = params.allowed_token_ids
        if allowed is not None and not set(allowed) - {self.stop}:
            raise VLLMValidationError(f"allowed_token_ids must name a token other than {self.stop}")

    def _limit(
        self, prompt: PromptType, params: SamplingParams, plan: BundlePlan, context: Context
    ) -> None:
        """Hold a reply to the operator's limit, and to the room that its reading leaves.

        Raises:
            VLLMValidationError: the prompt leaves none.
        """
        most = context.max_tokens
        if most is not None:
            params.max_tokens = min(params.max_tokens or most, most)
        ids = _ids(prompt) or ()
        if not (plan.staged or plan.watch_every is not None):
            return
        # one place is left for the token after which an ended reply is read
        room = int(self._engine.vllm_config.model_config.max_model_len) - len(ids) - 1
        if room < 1:
            raise VLLMValidationError(
                f"the prompt of {len(ids)} tokens leaves no room for a reply and its reading"
            )
        params.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)

    async def _shielded(self, work: Coroutine[Any, Any, Decision | None]) -> Decision | None:
        """``work`` to its end, even when whoever waits for it is cancelled."""
        running = asyncio.create_task(work)
        self.concluding.add(running)
        running.add_done_callback(self.concluding.discard)
        return await asyncio.shield(running)

    async def _conclude(
        self, task: Task, context: Context, choice: int, text: str, ended: int | None
    ) -> Decision | None:
        """Take a choice's decision from the workers and put it on record.

        Done before the reply's last output leaves, and also for a client that has left.

        Args:
            ended: Tokens of the reply; None where its client has left.
        """
        found = await self._take(task.id, ended)
        if found is None:
            return None
        if task.mode in ("observe", SCORE):
            found = {**found, "actuator": "none"}
        decision = Decision(**found)
        bundle_id = self.plans[task.bundle].id
        decided = ChoiceDecision(choice, decision, task.bundle, bundle_id, task.mode, text)
        context.decisions[choice] = decided
        if context.on_decision is not None:
            await context.on_decision(decided)
        return decision


def _ids(prompt: PromptType) -> Sequence[int] | None:
    """The prompt's tokens; None where it has not been tokenised."""
    found = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    return None if found is None else list(found)


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
