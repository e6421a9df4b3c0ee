"""States and targets for training a refusal head: one teacher-forced pass, the reply's positions
only.

The body is frozen, so the head's inputs never change: they are recorded once and every training
step afterwards touches the head alone (two small matrices, by default). Letters: m reply tokens in all, d hidden
size. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from safeswitch.activations.reader import Reader
from safeswitch.core.errors import ContextLengthError, DataError
from safeswitch.core.types import Prompt, as_messages
from safeswitch.models.batching import length_batches
from safeswitch.models.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class ReplyStates:
    """Head inputs and next tokens at every position of n replies.

    Args:
        hidden: ``[m, d]`` on the host: inputs of the LM head.
        targets: ``[m]``: the token each position should predict.
        rows: ``[m]``: which reply each position belongs to.
    """

    hidden: Tensor
    targets: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    @property
    def places(self) -> Tensor:
        """``[m]``: which token of its reply each position predicts, from 0."""
        _, counts = torch.unique_consecutive(self.rows, return_counts=True)
        return torch.cat([torch.arange(int(count)) for count in counts])


def reply_ids(lm: LanguageModel, reply: str | Sequence[int]) -> list[int]:
    """Token ids of a reply followed by the end token; a reply that comes as token ids is taken as
    it is."""
    if not isinstance(reply, str):
        return list(reply)
    ids = list(lm.tokenizer(reply, add_special_tokens=False)["input_ids"])
    end = lm.tokenizer.eos_token_id
    return [*ids, int(end)] if end is not None else ids


def closed_first(
    lm: LanguageModel, prompts: Sequence[Prompt], replies: Sequence[str]
) -> list[str | list[int]]:
    """Refusals as a head should learn them: where the prompt has opened the model's thinking, the
    mark that ends it comes first, so that the refusal is no thought."""
    found: list[str | list[int]] = []
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = lm.inputs([prompt], check=False)[0].ids if lm.thinking is not None else []
        opened = lm.thinking_opened(as_messages(prompt), ids)
        found.append([*lm.needs_thinking().end, *reply_ids(lm, reply)] if opened else reply)
    return found


@torch.no_grad()
def reply_states(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    replies: Sequence[str | Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> ReplyStates:
    """Record the head's input ``[m, d]``, float32 on the host, at each of the m positions that
    predict a reply token (prompt tokens carry no loss).

    A reply is text, or the token ids that the model itself gave. ``progress`` is called with the
    number of replies read since the last call.

    Raises:
        DataError: an empty reply, or as many replies as prompts not given.
        ContextLengthError: prompt and reply do not fit.
    """
    targets = _targets(lm, prompts, replies)
    encoded = lm.inputs(prompts)
    _check_room(lm, [len(one.ids) for one in encoded], targets)
    sequences = [[*one.ids, *ids[:-1]] for one, ids in zip(encoded, targets, strict=True)]
    hidden: dict[int, Tensor] = {}
    lengths = [len(row) for row in sequences]
    for batch in length_batches(
        lengths, lm.traits, pass_tokens=lm.pass_tokens, batch_rows=batch_size
    ):
        ids, mask = lm.pad([sequences[i] for i in batch])
        longest = max(len(targets[i]) for i in batch)
        vision = lm.collate([encoded[i].vision for i in batch], [sequences[i] for i in batch])
        with lm.lock, Reader(lm, [lm.num_layers], partial(_last, longest)) as reader:
            lm.run_backbone(ids, mask, vision)
            states = reader.states[lm.num_layers]
        for place, i in enumerate(batch):
            hidden[i] = states[place, -len(targets[i]) :].to("cpu", torch.float32, copy=True)
        if progress is not None:
            progress(len(batch))
    return ReplyStates(
        torch.cat([hidden[i] for i in range(len(sequences))]),
        torch.tensor([token for row in targets for token in row]),
        torch.cat([torch.full((len(row),), i) for i, row in enumerate(targets)]),
    )


def _targets(
    lm: LanguageModel, prompts: Sequence[Prompt], replies: Sequence[str | Sequence[int]]
) -> list[list[int]]:
    """The token ids of each reply, none of them empty."""
    if len(prompts) != len(replies) or not replies:
        raise DataError(
            f"head data: {len(prompts)} prompts but {len(replies)} replies; need as many, and at "
            "least one"
        )
    targets = [reply_ids(lm, reply) for reply in replies]
    for i, (reply, ids) in enumerate(zip(replies, targets, strict=True)):
        if not ids or (isinstance(reply, str) and not reply.strip()):
            raise DataError(f"head data: reply {i} is empty")
    return targets


def _check_room(lm: LanguageModel, lengths: Sequence[int], targets: Sequence[list[int]]) -> None:
    """Raise :class:`ContextLengthError` where a prompt of so many tokens and its reply do not
    fit."""
    limit = lm.context_length
    for i, (length, ids) in enumerate(zip(lengths, targets, strict=True)):
        if limit is not None and length + len(ids) - 1 > limit:
            raise ContextLengthError(
                f"head data: prompt {i} has {length} tokens and its reply {len(ids)}, but "
                f"{lm.model_id} takes {limit}"
            )


def _last(count: int, hidden: Tensor) -> Tensor:
    return hidden[:, -count:]
