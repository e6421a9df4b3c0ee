"""A second look: tokens are appended to sequences, and their states or their likelihood are read in one pass of its own.

What SCANS does with "Sure" behind a prompt, SafeProbing with a note behind the reply so far, and any-depth alignment with
the reply's own header put in again. Shapes: n sequences, d hidden size, m tokens. Knows nothing of what is appended.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from safeswitch.activations.record import APART, record
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ContextLengthError, SettingError
from safeswitch.core.types import Position, ReadPoint
from safeswitch.models.batching import length_batches
from safeswitch.models.language_model import LanguageModel


def reread(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], appended: Sequence[int], points: Sequence[ReadPoint]
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
    wanted = [p for p in points if p.position.kind in APART]
    if not appended:
        raise SettingError("reread: there are no tokens to append")
    rows = [[*sequence, *appended] for sequence in sequences]
    states: dict[ReadPoint, Tensor] = {}
    ends = {p: ReadPoint(p.layer, Position("pilot", len(appended))) for p in wanted if p.position.kind == "appended"}
    if ends:
        found = record(lm, rows, [len(s) for s in sequences], tuple(dict.fromkeys(ends.values())), dtype=torch.float32)
        states = {point: found.at(end) for point, end in ends.items()}
    for point in wanted:
        if point.position.kind == "nll":
            states[point] = _likelihood(lm, rows, appended, point.position.index)[:, None]
    return Activations(states)


@torch.no_grad()
def _likelihood(lm: LanguageModel, rows: Sequence[Sequence[int]], appended: Sequence[int], m: int) -> Tensor:
    """Mean negative log-likelihood ``[n]`` of the last ``m`` tokens of ``rows``."""
    if not 1 <= m <= len(appended):
        raise SettingError(f"reread: nll must be over 1..{len(appended)} of the appended tokens; got {m}")
    longest, limit = max(map(len, rows)), lm.context_length
    if limit is not None and longest > limit:
        raise ContextLengthError(f"reread: a sequence has {longest} tokens; {lm.model_id} takes {limit}")
    takes = inspect.signature(lm.model.forward).parameters
    keep = {"logits_to_keep": m + 1} if "logits_to_keep" in takes else {}
    targets = torch.tensor(appended[-m:], device=lm.device)
    found = torch.zeros(len(rows))
    with lm.lock:
        for batch in length_batches([len(row) for row in rows], lm.traits):
            ids, mask = lm.pad([rows[i] for i in batch])
            extra = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if "position_ids" in takes else {}
            logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra, **keep).logits
            odds = torch.log_softmax(logits[:, -m - 1 : -1].float(), -1)
            picked = odds.gather(-1, targets.to(odds.device)[None, :, None].expand(len(batch), -1, 1))
            found[torch.tensor(batch)] = -picked[..., 0].mean(1).cpu()
    return found
