"""A second look: tokens are appended to sequences, and their states or their likelihood are read in
one pass of its own.

What SCANS does with "Sure" behind a prompt, SafeProbing with a note behind the reply so far, and
any-depth alignment with the reply's own header put in again. Shapes: n sequences, d hidden size, m
tokens. Knows nothing of what is appended.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from safeswitch.activations.record import record
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ContextLengthError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import REREAD, Position, ReadPoint
from safeswitch.models.batching import length_batches
from safeswitch.models.language_model import LanguageModel


def reread(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    appended: Sequence[int],
    points: Sequence[ReadPoint],
) -> Activations:
    """Read ``points`` of kind ``appended`` and ``nll`` after each of n sequences.

    Args:
        lm: The model; hooks that are on it stay in force.
        sequences: Token ids, each of one token or more.
        appended: Token ids that are put behind each, one or more.
        points: What to read; of another kind, they are passed over.

    Returns:
        States ``[n, d]``, and for ``nll`` ``[n, 1]``, float32 on the host.

    Raises:
        SettingError: nothing to append, or an ``nll`` of more tokens than that.
        ContextLengthError: a sequence that leaves no room.
    """
    wanted = [p for p in points if p.position.kind in REREAD]
    if not appended:
        raise SettingError("reread: there are no tokens to append")
    rows = [[*sequence, *appended] for sequence in sequences]
    states: dict[ReadPoint, Tensor] = {}
    end = Position("pilot", len(appended))
    ends = {p: replace(p, position=end) for p in wanted if p.position.kind == "appended"}
    if ends:
        found = record(
            lm,
            rows,
            [len(s) for s in sequences],
            tuple(dict.fromkeys(ends.values())),
            dtype=torch.float32,
        )
        states = {point: found.at(end) for point, end in ends.items()}
    for point in wanted:
        m = point.position.index
        if point.position.kind == "nll" and not 1 <= m <= len(appended):
            raise SettingError(
                f"reread: nll must be over 1..{len(appended)} of the appended tokens; got {m}"
            )
        if point.position.kind == "nll":
            states[point] = mean_nll(lm, rows, [m] * len(rows))[:, None]
    return Activations(states)


@torch.no_grad()
def mean_nll(
    lm: LanguageModel, rows: Sequence[Sequence[int]], counts: Sequence[int], *, batch_rows: int = 8
) -> Tensor:
    """Mean negative log-likelihood of the last ``counts[i]`` tokens of each row, nats a token:
    ``[n]``; 0 for none.

    Args:
        lm: The model; hooks that are on it stay in force.
        rows: Token ids, each with a token or more before those that are counted.
        counts: Tokens that are counted.
        batch_rows: Most rows in a batch (logits of all positions may be held for each).

    Raises:
        ContextLengthError: a row that the model cannot take.
    """
    longest, limit = max(map(len, rows), default=0), lm.context_length
    if limit is not None and longest > limit:
        raise ContextLengthError(f"a sequence has {longest} tokens; {lm.model_id} takes {limit}")
    takes = inspect.signature(lm.model.forward).parameters
    found = torch.zeros(len(rows))
    with lm.lock:
        lengths = [len(row) for row in rows]
        for batch in length_batches(
            lengths, lm.traits, pass_tokens=lm.pass_tokens, batch_rows=batch_rows
        ):
            ids, mask = lm.pad([rows[i] for i in batch])
            extra: JsonObject = (
                {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}
                if "position_ids" in takes
                else {}
            )
            if "logits_to_keep" in takes:
                extra["logits_to_keep"] = max(counts[i] for i in batch) + 1
            logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
            for place, i in enumerate(batch):
                if counts[i]:
                    odds = logits[place, -counts[i] - 1 : -1].float().log_softmax(-1)
                    found[i] = (
                        -odds.gather(1, ids[place, -counts[i] :, None].to(odds.device)).mean().cpu()
                    )
    return found
