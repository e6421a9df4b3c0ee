"""Fitting at vLLM's speed: replies and states of the untouched model come from a vLLM engine,
through the same reading path as serving. Refusal heads are still trained on states that
``transformers`` reads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.sampling_params import RequestOutputKind, SamplingParams

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError
from safeswitch.core.types import RUNNING, Prompt, ReadPoint, Reply
from safeswitch.engines.context import Context
from safeswitch.engines.settings import KEY, GuardSettings
from safeswitch.engines.vllm.engine import VLLMEngine
from safeswitch.engines.vllm.settings import Task
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.engine import ReadingEngine

_AT_ONCE = 256


class VLLMCollector(VLLMEngine, ReadingEngine):
    """A vLLM engine of the untouched model that keeps states; what
    :func:`safeswitch.fitting.fit.fit` takes as an engine.

    Args:
        lm: The same model in ``transformers``, for its tokenizer, its limits, and the states of
            reply tokens.
        model: Model folder or hub id.
        points: Every point that fitting will read (:class:`safeswitch.fitting.plan.FitPlan`).
        engine_args: Arguments of vLLM's ``AsyncEngineArgs``.

    Raises:
        SettingError: a window of prompt tokens, which vLLM does not hand out one by one, or
            points behind thinking.
    """

    def __init__(
        self, lm: LanguageModel, model: str | Path, points: Sequence[ReadPoint], **engine_args: Any
    ) -> None:
        windows = [str(p) for p in points if p.position.kind == "window"]
        if windows:
            raise SettingError(
                f"vLLM does not hand out prompt tokens one by one ({', '.join(windows)}); fit with "
                "--readers steps or means"
            )
        if any(p.position.kind == "answer" for p in points):
            raise SettingError(
                "vLLM's guard does not follow thinking; fit with --pilot-from reply, or --engine "
                "transformers"
            )
        self.lm, self._points, self._numbers = lm, tuple(points), itertools.count()
        settings = GuardSettings({}, "off", record=tuple(map(str, points)))
        super().__init__(model, settings, chat_template=lm.chat_template, **engine_args)

    async def _reply(self, ids: list[int], params: SamplingParams, context: Context) -> Reply:
        if KEY not in (params.extra_args or {}):
            params = _stamped(params, Task(f"plain-{next(self._numbers)}", "", "off"))
        return await super()._reply(ids, params, context)

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """The untouched model's greedy replies, and states at ``points``; see
        :meth:`TransformersEngine.collect`.

        Raises:
            SettingError: a point that the engine was not made for.
            ActivationError: states that are not finite.
        """
        unknown = [str(p) for p in points if p not in self._points]
        if unknown:
            raise SettingError(f"VLLMCollector: was not made to read {', '.join(unknown)}")
        rows = self.lm.encode(list(prompts), room=max_new_tokens)
        keys = [f"record-{next(self._numbers)}" for _ in rows]
        deepest = max((p.position.index for p in points if p.position.kind in RUNNING), default=0)
        means = any(p.position.kind == "mean" for p in points)
        greedy = SamplingParams(
            max_tokens=max(1, max_new_tokens),
            temperature=0.0,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_reading_prefix_cache=means or None,
        )
        once = SamplingParams(
            max_tokens=1, temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY
        )

        async def one(i: int) -> Reply:
            reply = await self._reply(
                rows[i], _stamped(greedy, Task(keys[i], "", "record")), Context()
            )
            fed = len(reply.token_ids)
            if max_new_tokens and fed <= deepest:
                ended = _stamped(once, Task(keys[i], "", "record-end", fed=fed))
                await self._reply([*rows[i], *reply.token_ids], ended, Context())
            if progress is not None:
                progress(1)
            return reply

        async def everything() -> list[Reply]:
            return list(await asyncio.gather(*(one(i) for i in range(len(rows)))))

        replies: list[Reply] = self._wait(everything())
        kept = self._take(keys)
        states: dict[ReadPoint, Tensor] = {}
        for point in points:
            states[point] = torch.stack([kept[key][str(point)] for key in keys])
        activations = Activations(states, {}, tuple(map(self.lm.prompt_text, rows)))
        activations.check_finite()
        return (replies if max_new_tokens else []), activations

    def _take(self, keys: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """States by request and point, out of the workers."""
        kept: dict[str, dict[str, Tensor]] = {}
        for start in range(0, len(keys), _AT_ONCE):
            part = list(keys[start : start + _AT_ONCE])
            answers = self._wait(self.llm.collective_rpc("safeswitch_recorded", args=(part,)))
            found: dict[str, dict[str, bytes]] = next((a for a in answers if a), {})
            for key, states in found.items():
                kept[key] = {
                    p: torch.from_numpy(np.frombuffer(raw, dtype="<f4").copy())
                    for p, raw in states.items()
                }
        return kept


def _stamped(params: SamplingParams, task: Task) -> SamplingParams:
    own = params.clone()
    own.extra_args = {**(params.extra_args or {}), KEY: task.to_args()}
    return own
