"""The decoding loop: a whole batch in lockstep, rows rolled back to the end of their prompt when
they fire behind it.

``transformers`` prepares everything (processors, criteria, cache) and calls this loop through
``custom_generate``, so every decoding option means what it means there. A row that fires after t
reply tokens has those t cached positions masked out and its position counter set back. Its prompt
moves right, over the tokens that were dropped, with padding on its left. Processors and stopping
criteria get the columns from ``offset`` on: to them, the row is a prompt whose reply begins now::

    before   prompt .... prompt  r1 r2 r3       offset 0
    after    pad pad pad prompt .... prompt     offset 3: what follows are the refusal's tokens

Letters: b rows, T padded prompt length, V vocabulary. Knows nothing of probers or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.transformers.rows import Rows


class Listener(Protocol):
    """Follows every step, so that decided text can be shown early."""

    def step(self, tokens: Tensor, leaving: Tensor) -> None:
        """Called with the ``tokens`` ``[b]`` just chosen (a row's own where ``rows.valid``), and
        the numbers of the rows that have just left their reply."""


class Loop:
    """One batch through the decoding loop; made for one call.

    Args:
        rows: The gate at work on the batch.
        seeds: One sampling seed per row, or None to draw from torch's global generator.
        listener: Follows every step.
        context: Positions that the model has; rows that have ended stay at the last one while
            others continue.

    Attributes:
        generated: ``[b]`` tokens chosen for each row so far, those that were thrown away among
            them.
        offset: ``[b]`` columns by which each row's tokens have been shifted right.
        offsets: The values in ``offset``, each once.
    """

    def __init__(
        self,
        rows: Rows,
        seeds: Sequence[int] | None = None,
        listener: Listener | None = None,
        context: int | None = None,
    ) -> None:
        self.rows = rows
        self.seeds = seeds
        self.listener = listener
        self.context = context
        b = len(rows.lengths)
        self.generated = torch.zeros(b, dtype=torch.long)
        self.offset = torch.zeros(b, dtype=torch.long)
        self.offsets = [0]
        self._alive = torch.ones(b, dtype=torch.bool)
        """``[b]``: rows that write more tokens. On the host, where it decides what is run next:
        one transfer a step brings what has ended."""
        self._end_column = torch.full((b,), -1, dtype=torch.long)
        """``[b]``: column behind each row's last token; -1 while it runs, and no row runs when the
        loop ends."""
        self._reply_position = torch.zeros(0, dtype=torch.long)
        """``[..., b]``: position of each row's first reply token: its prompt's length, or less
        where images take up fewer positions."""
        self._width = 0
        self._pad_id = 0
        self._generators: list[torch.Generator] = []

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> list[list[int]]:
        """Decode; returns the reply tokens of each row, end token included, padding removed."""
        self._begin(input_ids, generation_config)
        first = True
        # A row that has ended may owe the gate a reading, for which its last token must be fed.
        while first or bool(self._alive.any()) or self.rows.owing:
            logits, model_kwargs = self._forward(model, input_ids, model_kwargs, first)
            first = False
            # Before any token is chosen: a rolled-back row's next token follows its prompt.
            leaving = self._roll_back(input_ids, model_kwargs)
            scores = self._process(logits_processor, input_ids, logits)
            tokens = self._choose(scores, generation_config.do_sample)
            input_ids = self._append(input_ids, tokens)
            self._end_rows(input_ids, stopping_criteria)
            if self.listener is not None:
                self.listener.step(tokens, leaving)
        return self._replies(input_ids)

    def _begin(self, input_ids: Tensor, generation_config: GenerationConfig) -> None:
        self._width = input_ids.shape[1]
        pad = generation_config._pad_token_tensor
        self._pad_id = int(pad) if pad is not None else 0
        for seed in self.seeds or ():
            generator = torch.Generator(device=input_ids.device)
            self._generators.append(generator.manual_seed(seed))

    def _forward(
        self, model: Any, input_ids: Tensor, model_kwargs: JsonObject, first: bool
    ) -> tuple[Tensor, JsonObject]:
        """Feed the newest tokens (at ``first`` the prompts); logits ``[b, V]`` of the next ones,
        and what the next pass needs."""
        inputs = model.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=None if first else 1,
            is_first_iteration=first,
            **model_kwargs,
        )
        # the hook of ``rows`` on the LM head runs in here: it judges the newest tokens, rewrites
        # the logits of rows that have fired, and says in ``rows.leaving`` which leave their reply
        outputs = model(**inputs, return_dict=True)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        positions = model_kwargs.get("position_ids")
        if positions is not None:
            if self.context is not None:
                # Rows that have ended are fed padding for as long as others run, which must not
                # take them to a position that the model does not have.
                positions.clamp_(max=self.context - 1)
            if first:
                self._reply_position = positions[..., -1].clone()
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        return logits, model_kwargs

    def _roll_back(self, input_ids: Tensor, model_kwargs: JsonObject) -> Tensor:
        """Put rows that have just fired back to the end of their prompt, or stop those for which
        that cannot be done in place; returns the numbers of both. ``input_ids`` and the mask and positions in
        ``model_kwargs`` are changed in place."""
        leaving = self.rows.leaving
        if not len(leaving):
            return leaving
        stopped = self.rows.stopped
        self._alive[stopped] = False
        self._end_column[stopped] = 0
        back = leaving[~torch.isin(leaving, stopped)]
        if not len(back):
            return leaving
        at = back.to(input_ids.device)
        width = self._width
        fed = input_ids.shape[1] - width
        if model_kwargs.get("attention_mask") is None:
            model_kwargs["attention_mask"] = input_ids.new_ones(input_ids.shape[0], width + fed + 1)
        # The reply's keys stay in the cache, which the batch has in common; nothing sees them.
        model_kwargs["attention_mask"][at, width : width + fed] = 0
        if model_kwargs.get("position_ids") is not None:
            model_kwargs["position_ids"][..., at, -1] = self._reply_position[..., at]
        prompts = input_ids[at, :width].clone()
        input_ids[at, fed:] = prompts
        input_ids[at, :fed] = self._pad_id
        self.offset[back] = fed
        self.offsets = self.offset.unique().tolist()
        # Also a row that had ended: its end was the reply's that is thrown away.
        self._end_column[back] = -1
        self._alive[back] = True
        self._reseed(back)
        return leaving

    def _reseed(self, rows: Tensor) -> None:
        """Begin the draws of ``rows`` anew, so that a refusal draws as if it had been run alone."""
        if self.seeds is None:
            return
        for row in rows.tolist():
            self._generators[row].manual_seed(self.seeds[row])

    def _append(self, input_ids: Tensor, tokens: Tensor) -> Tensor:
        """``input_ids`` with one more column: ``tokens`` ``[b]``, padding for rows that have
        ended."""
        if not bool(self._alive.all()):
            tokens = torch.where(self._alive.to(tokens.device), tokens, self._pad_id)
        self.rows.see(tokens)
        self.generated += self._alive
        self.rows.valid = self._alive
        self.rows.fed += 1
        return torch.cat([input_ids, tokens[:, None]], dim=-1)

    def _end_rows(self, input_ids: Tensor, stopping_criteria: StoppingCriteriaList) -> None:
        """End the rows for which a stopping criterion holds."""
        met = self._per_offset(input_ids, lambda ids: stopping_criteria(ids, None))
        done = met.cpu() & self._alive
        if bool(done.any()):
            self._end_column[done] = input_ids.shape[1]
            # A new tensor: ``rows.valid`` is the old one, and still holds for the newest token.
            self._alive = self._alive & ~done
        self.rows.alive = self._alive

    def _process(self, processor: Any, input_ids: Tensor, logits: Tensor) -> Tensor:
        """Scores ``[b, V]``; ``logits`` may be written to, and is copied only where several calls
        begin from it."""
        shared = len(self.offsets) > 1
        return self._per_offset(
            input_ids, lambda ids: processor(ids, logits.clone() if shared else logits)
        )

    def _per_offset(self, input_ids: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
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
        """The next token ``[b]`` of each row, from its ``scores`` ``[b, V]``."""
        if not do_sample:
            return scores.argmax(-1)
        drawn = self._draw(torch.softmax(scores, -1))
        # A refusal is never drawn: nano's, sampled at temperature 1, complies in 13 % of cases.
        refusing = self.rows.refusing.to(scores.device)
        return torch.where(refusing, scores.argmax(-1), drawn)

    def _draw(self, probabilities: Tensor) -> Tensor:
        """One token ``[b]`` for each row of ``probabilities`` ``[b, V]``."""
        if not self._generators:
            return torch.multinomial(probabilities, 1).squeeze(1)
        draws: list[Tensor] = []
        for i, generator in enumerate(self._generators):
            draws.append(torch.multinomial(probabilities[i : i + 1], 1, generator=generator))
        return torch.cat(draws).squeeze(1)

    def _replies(self, input_ids: Tensor) -> list[list[int]]:
        starts = (self._width + self.offset).tolist()
        replies: list[list[int]] = []
        rows = zip(input_ids.tolist(), starts, self._end_column.tolist(), strict=True)
        for row, start, end in rows:
            replies.append(row[start:end])
        return replies
