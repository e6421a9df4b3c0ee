"""Offline generation in vLLM under a switch, through the same guarded front end as the server.

One engine, one event loop in a thread of its own; replies are those of :class:`TransformersEngine`.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Prompt, Reply, as_messages
from safeswitch.engines.context import CONTEXT, Context
from safeswitch.engines.requests import ends_in_prefill, row_limits, row_seeds
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.vllm.install import install
from safeswitch.engines.vllm.settings import engine_flags, prefer_v1_runner
from safeswitch.models.chat import ChatEncoder
from safeswitch.models.load import check_for_vllm
from safeswitch.switch.engine import Engine
from safeswitch.switch.switch import Switch

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


def run_dtype(config: PretrainedConfig, asked: str) -> str:
    """The precision that a model runs in, as vLLM takes it: for ``auto`` that of its weights.

    vLLM's own ``auto`` would round float32 weights to bfloat16, and a switch that was fitted on the
    weights as they are would see other states.
    """
    own = config.dtype or config.get_text_config().dtype
    return asked if asked != "auto" or own is None else str(own).removeprefix("torch.")


class VLLMEngine(Engine):
    """A vLLM engine that serves one switch.

    Args:
        model: Model folder or hub id.
        switch: The switch, or the folder of its bundle, or whole settings; None runs a stock engine
            with nothing of ours in it.
        policy: ``enforce``, ``observe`` or ``off``.
        allow_other_model: Accept a switch fitted on other weights.
        chat_template: A Jinja template instead of the tokenizer's.
        engine_args: Arguments of vLLM's ``AsyncEngineArgs`` (``max_model_len``,
            ``tensor_parallel_size``, ...); ``dtype`` as in :func:`run_dtype`.

    Raises:
        SettingError: an engine or a bundle in which the guard would not be at work.
        FingerprintError: a bundle of another model.
        ModelError: a GGUF file or an adapter.
    """

    def __init__(
        self,
        model: str | Path,
        switch: Switch | GuardSettings | str | Path | None,
        *,
        policy: str = "enforce",
        allow_other_model: bool = False,
        chat_template: str | None = None,
        **engine_args: Any,
    ) -> None:
        check_for_vllm(model)
        install()
        trusted = bool(engine_args.get("trust_remote_code", False))
        self._folder = tempfile.TemporaryDirectory(prefix="safeswitch-")
        settings = self._settings(switch, policy, allow_other_model)
        config = AutoConfig.from_pretrained(str(model), trust_remote_code=trusted)
        dtype = run_dtype(config, str(engine_args.get("dtype", "auto")))
        flags: JsonObject = {**engine_args, "dtype": dtype}
        if settings is not None:
            prefer_v1_runner()
            own = engine_flags(settings, list(config.architectures or []))
            given = engine_args.get("additional_config", {})
            flags |= own | {"additional_config": {**given, **own["additional_config"]}}
        self.tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=trusted)
        self._chat = ChatEncoder(self.tokenizer, str(model), chat_template)
        self._guards = settings is not None and not settings.record
        self._ids = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        args = AsyncEngineArgs(model=str(model), generation_config="vllm", **flags)
        try:
            self.llm: AsyncLLM = self._wait(self._start(args))
        except BaseException:
            self._stop_loop()
            raise

    def _settings(
        self, switch: Switch | GuardSettings | str | Path | None, policy: str, allow_other: bool
    ) -> GuardSettings | None:
        """Settings of the guard; a switch in memory is saved first, since workers load it from its
        folder."""
        if switch is None or isinstance(switch, GuardSettings):
            return switch
        if isinstance(switch, Switch):
            folder = Path(self._folder.name) / "switch"
            switch.save_pretrained(folder)
            switch = folder
        return GuardSettings({"default": str(Path(switch).absolute())}, policy, allow_other)

    async def _start(self, args: AsyncEngineArgs) -> AsyncLLM:
        return AsyncLLM.from_engine_args(args)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        *,
        max_new_tokens: int | Sequence[int] = 256,
        seed: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] = (),
        do_sample: bool = False,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """One reply per prompt, in order.

        Args:
            prompts: Texts, message lists or examples.
            switch: Must be None: the engine's own switch is in force for all its requests.
            max_new_tokens: Longest reply, for all prompts or for each.
            seed: One for prompt i = ``seed + i``, or one per prompt.
            stop_strings: Strings that end a reply; kept at its end, as ``transformers`` does.
            do_sample: Sample; False decodes greedily.
            progress: Called with the number of replies finished since the last call.
            options: Fields of vLLM's ``SamplingParams`` (``temperature``, ``top_p``,
                ``min_tokens``, ``logprobs``, ...).

        Raises:
            DataError: an empty prompt; under a switch, one that ends in a prefilled reply.
            ContextLengthError: a prompt that leaves no room for the reply.
            SettingError: a switch was given, or an option that vLLM does not know.
        """
        if switch is not None:
            raise SettingError("VLLMEngine: the switch is given once, when the engine is made")
        unknown = set(options) - set(SamplingParams.__annotations__)
        if unknown:
            raise SettingError(
                f"VLLMEngine.generate: vLLM's SamplingParams has no {', '.join(sorted(unknown))}"
            )
        limits = row_limits(max_new_tokens, len(prompts))
        rows = self._encoded(prompts, limits)
        stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
        if not do_sample:
            options = {**options, "temperature": 0.0}
        common: JsonObject = {
            "stop": stops,
            "include_stop_str_in_output": True,
            "output_kind": RequestOutputKind.FINAL_ONLY,
            **options,
        }
        params: list[SamplingParams] = []
        for limit, one in zip(limits, row_seeds(seed, len(rows)), strict=True):
            params.append(SamplingParams(max_tokens=limit, seed=one, **common))
        return self._answer(rows, params, progress)

    def _encoded(self, prompts: Sequence[Prompt], limits: Sequence[int]) -> list[list[int]]:
        """Tokens of each prompt, with room for its reply.

        Raises:
            DataError, ContextLengthError: see :meth:`generate`.
        """
        conversations = [as_messages(prompt) for prompt in prompts]
        prefilled = [i for i, messages in enumerate(conversations) if ends_in_prefill(messages)]
        if self._guards and prefilled:
            raise DataError(
                f"VLLMEngine: prompt {prefilled[0]} ends in a prefilled reply, which hides the "
                "request from vLLM's guard; the transformers engine reads it without"
            )
        context = int(self.llm.model_config.max_model_len)
        encoded = self._chat.encode(conversations, limit=context, room=limits)
        return [one.ids for one in encoded]

    def _answer(
        self,
        rows: Sequence[list[int]],
        params: Sequence[SamplingParams],
        progress: Callable[[int], None] | None,
    ) -> list[Reply]:
        """Replies to encoded prompts, all of them in the engine at the same time."""

        async def one(ids: list[int], sampling: SamplingParams) -> Reply:
            reply = await self._reply(ids, sampling, Context())
            if progress is not None:
                progress(1)
            return reply

        return self._together(map(one, rows, params))

    def screen(self, prompts: Sequence[Prompt]) -> list[Decision]:
        """What stage 1 of the engine's switch decides on each prompt; nothing is written.

        Args:
            prompts: n texts, message lists or examples.

        Raises:
            DataError: an empty prompt, or one that ends in a prefilled reply.
            ContextLengthError: a prompt that does not fit.
            SettingError: the engine has no switch.
        """
        if not self._guards:
            raise SettingError("VLLMEngine.screen: the engine has no switch to read with")
        rows = self._encoded(prompts, [1] * len(prompts))
        once = SamplingParams(max_tokens=1, output_kind=RequestOutputKind.FINAL_ONLY)
        work = (self._reply(row, once, Context(score_only=True)) for row in rows)
        return [reply.decision for reply in self._together(work)]

    def _together(self, work: Iterable[Coroutine[Any, Any, Reply]]) -> list[Reply]:
        """Replies of requests that are in the engine at one time, in order."""

        async def everything() -> list[Reply]:
            return list(await asyncio.gather(*work))

        replies: list[Reply] = self._wait(everything())
        return replies

    async def _reply(self, ids: list[int], params: SamplingParams, context: Context) -> Reply:
        token = CONTEXT.set(context)
        try:
            final: RequestOutput | None = None
            async for out in self.llm.generate(
                tokens_input(ids), params, f"offline-{next(self._ids)}"
            ):
                final = out
        finally:
            CONTEXT.reset(token)
        assert final is not None  # vLLM ends every request with an output
        choice = final.outputs[0]
        decision = context.decisions[0].decision if context.decisions else Decision(False, "none")
        cut = choice.finish_reason == "length"
        text = str(self.tokenizer.decode(choice.token_ids, skip_special_tokens=True))
        generated = len(choice.token_ids) + (decision.token_index if decision.fired else 0)
        return Reply(
            text,
            tuple(choice.token_ids),
            "length" if cut else "stop",
            decision,
            len(ids),
            generated,
        )

    def set_thresholds(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        """Put other thresholds in force for requests that come from now on; returns those in
        force."""
        answers = self._wait(
            self.llm.collective_rpc("safeswitch_thresholds", args=("default", dict(thresholds)))
        )
        found = next(dict(a) for a in answers if a)
        if "error" in found:
            raise SettingError(found["error"])
        return found

    def close(self) -> None:
        """Shut the engine down."""
        self._wait(self._shut())
        self._stop_loop()
        self._folder.cleanup()

    async def _shut(self) -> None:
        self.llm.shutdown()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> VLLMEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
