"""The decoding loop: a whole batch in lockstep, rows rolled back to the end of their prompt when
they switch late.

``transformers`` prepares everything (processors, criteria, cache) and calls this loop through
``custom_generate``, so every decoding option means what it means there. A row that switches after t
reply tokens has those t cached positions masked out and its position counter set back; its tokens
are shifted right, so that processors and stopping criteria, which are called on the columns from
``offset`` on, see the row exactly as if it had been run alone.

Letters: b rows, T padded prompt length, V vocabulary. Knows nothing of probers or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.transformers.rows import Rows


class Listener(Protocol):
    """Is told of every step, so that decided text can be shown early."""

    def step(self, tokens: Tensor, turned: Tensor) -> None:
        """``tokens`` ``[b]`` just chosen (real where ``rows.valid``); ``turned``: rows just taken
        back."""


class Loop:
    """One batch through the decoding loop.

    Args:
        rows: The gate at work on the batch.
        seeds: One sampling seed per row, or None to draw from torch's global generator.
        listener: Told of every step.
        context: Positions that the model has; rows that have ended stay at the last one while
            others go on.

    Attributes:
        generated: ``[b]`` tokens chosen for each row so far, those that were thrown away among
            them.
    """

    def __init__(
        self,
        rows: Rows,
        seeds: Sequence[int] | None = None,
        listener: Listener | None = None,
        context: int | None = None,
    ) -> None:
        self.rows, self.seeds, self.listener, self.context = rows, seeds, listener, context
        self.generators: list[torch.Generator] = []
        self.offset = torch.zeros(0, dtype=torch.long)
        self.offsets = [0]
        self.ends = torch.zeros(0, dtype=torch.long)
        """Position of each row's first reply token: its prompt's length, or less where images take
        up fewer positions."""
        self.generated = torch.zeros(0, dtype=torch.long)

    def __call__(
        self,
        model: Any,
        input_ids: Any,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> list[list[int]]:
        """Decode; returns the reply tokens of each row, end token included, padding removed.

        What has to be known on the host, which rows are alive, is kept there: one transfer a step
        brings what has ended.
        """
        b, width = input_ids.shape
        device = input_ids.device
        if self.seeds is not None:
            self.generators = [
                torch.Generator(device=device).manual_seed(seed) for seed in self.seeds
            ]
        pad = generation_config._pad_token_tensor
        pad_id = int(pad) if pad is not None else 0
        alive = torch.ones(b, dtype=torch.bool)
        self.offset, self.offsets = torch.zeros(b, dtype=torch.long), [0]
        self.generated = torch.zeros(b, dtype=torch.long)
        ends = torch.full((b,), -1, dtype=torch.long)
        rows = self.rows
        first = True
        while first or bool(alive.any()) or rows.owing:
            inputs = model.prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=None if first else 1,
                is_first_iteration=first,
                **model_kwargs,
            )
            # the hook of ``rows`` on the LM head runs in here: it judges the newest tokens, rewrites
            # the logits of rows that have fired, and says in ``rows.turned`` which leave their reply
            outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            if self.context is not None and model_kwargs.get("position_ids") is not None:
                model_kwargs["position_ids"].clamp_(max=self.context - 1)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=device)
            del outputs
            if first and model_kwargs.get("position_ids") is not None:
                self.ends = model_kwargs["position_ids"][..., -1].clone()
            first = False
            turned = self._turn_back(input_ids, width, alive, ends, pad_id, model_kwargs)
            tokens = self._choose(
                self._process(logits_processor, input_ids, logits), generation_config.do_sample
            )
            if not bool(alive.all()):
                tokens = torch.where(alive.to(device), tokens, pad_id)
            rows.see(tokens)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            self.generated += alive
            rows.valid = alive
            rows.fed += 1
            done = (
                self._per_offset(input_ids, lambda ids: stopping_criteria(ids, None)).cpu() & alive
            )
            if bool(done.any()):
                ends[done] = input_ids.shape[1]
                alive = alive & ~done
            rows.alive = alive
            if self.listener is not None:
                self.listener.step(tokens, turned)
        return self._replies(input_ids, width, ends)

    def _turn_back(
        self,
        input_ids: Tensor,
        width: int,
        alive: Tensor,
        ends: Tensor,
        pad_id: int,
        model_kwargs: JsonObject,
    ) -> Tensor:
        """Take rows that have just fired back to the end of their prompt; ``input_ids`` and
        ``alive`` are changed in place."""
        rows = self.rows
        if not len(rows.turned):
            return rows.turned
        stopped = rows.stopped
        alive[stopped] = False
        ends[stopped] = 0
        turned = rows.turned[~torch.isin(rows.turned, stopped)]
        if not len(turned):
            return rows.turned
        at = turned.to(input_ids.device)
        fed = input_ids.shape[1] - width
        if model_kwargs.get("attention_mask") is None:
            model_kwargs["attention_mask"] = input_ids.new_ones(input_ids.shape[0], width + fed + 1)
        model_kwargs["attention_mask"][at, width : width + fed] = 0
        if model_kwargs.get("position_ids") is not None:
            model_kwargs["position_ids"][..., at, -1] = self.ends[..., at]
        prompts = input_ids[at, :width].clone()
        input_ids[at, fed:] = prompts
        input_ids[at, :fed] = pad_id
        self.offset[turned] = fed
        self.offsets = self.offset.unique().tolist()
        ends[turned] = -1
        alive[turned] = True
        for row in turned.tolist() if self.generators else ():
            assert self.seeds is not None
            self.generators[row].manual_seed(self.seeds[row])
        return rows.turned

    def _process(self, processor: Any, input_ids: Tensor, logits: Tensor) -> Tensor:
        """Scores ``[b, V]``; ``logits`` may be written to, and is copied only where several calls
        begin from it."""
        shared = len(self.offsets) > 1
        return self._per_offset(
            input_ids, lambda ids: processor(ids, logits.clone() if shared else logits)
        )

    def _per_offset(self, input_ids: Tensor, call: Callable[[Tensor], Any]) -> Tensor:
        """Call on the whole batch once per offset, on the columns from there on, and keep the rows
        it is meant for.

        Never on part of the batch: a processor may hold one value per row.
        """
        first, *others = self.offsets
        result: Tensor = call(input_ids[:, first:] if first else input_ids)
        for offset in others:
            there = (self.offset == offset).nonzero().flatten().to(input_ids.device)
            result[there] = call(input_ids[:, offset:])[there]
        return result

    def _choose(self, scores: Tensor, do_sample: bool) -> Tensor:
        if not do_sample:
            return scores.argmax(-1)
        drawn = self._draw(torch.softmax(scores, -1))
        # A refusal is never drawn: nano's, sampled at temperature 1, complies in 13 % of cases.
        refusing = self.rows.refusing.to(scores.device)
        return torch.where(refusing, scores.argmax(-1), drawn)

    def _draw(self, probabilities: Tensor) -> Tensor:
        """One token ``[b]`` for each row of ``probabilities`` ``[b, V]``."""
        if not self.generators:
            return torch.multinomial(probabilities, 1).squeeze(1)
        draws = [
            torch.multinomial(probabilities[i : i + 1], 1, generator=generator)
            for i, generator in enumerate(self.generators)
        ]
        return torch.cat(draws).squeeze(1)

    def _replies(self, input_ids: Tensor, width: int, ends: Tensor) -> list[list[int]]:
        starts = (width + self.offset).tolist()
        return [
            row[start : int(end)]
            for row, start, end in zip(input_ids.tolist(), starts, ends, strict=True)
        ]
