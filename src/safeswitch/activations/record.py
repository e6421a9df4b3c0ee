"""Recording states at read points: one forward pass of the backbone for each padded batch, no
logits.

Shapes: n requests, b rows of a batch, t tokens, d hidden size, w window tokens. Only the asked rows
ever leave the layer that computed them. Knows nothing of labels or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safeswitch.activations.reader import Keep, Reader
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ActivationError, ContextLengthError, SettingError
from safeswitch.core.types import REREAD, RUNNING, SPANS, Output, Position, Prompt, ReadPoint, Site
from safeswitch.models.batching import length_batches
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.vision import Vision

Progress = Callable[[int, int], None]


def prompt_sequences(
    lm: LanguageModel, prompts: Sequence[Prompt]
) -> tuple[list[list[int]], list[int], tuple[str, ...]]:
    """What :func:`record` takes, for prompts without replies: token rows, prompt lengths in tokens,
    plain texts.

    Raises:
        ModelError: no chat template.
        ContextLengthError: a prompt that does not fit.
    """
    sequences = lm.encode(prompts)
    return (
        sequences,
        [len(row) for row in sequences],
        tuple(lm.prompt_text(row) for row in sequences),
    )


@torch.no_grad()
def record(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    points: Sequence[ReadPoint],
    *,
    texts: Sequence[str] = (),
    answers: Sequence[int] = (),
    visions: Sequence[Vision] = (),
    batch_tokens: int = 16384,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Activations:
    """Record the states of n sequences at ``points``.

    ``prompt_end`` is the state of the prompt's last token, ``pilot:k`` the state after k reply
    tokens (teacher-forced from ``sequences``), ``answer:k`` that after k tokens of the answer,
    ``window:w`` the states of the last w prompt tokens, left-padded with zeros; ``window:0`` takes
    whole prompts, padded to the longest. A reply of fewer than k tokens gives the state of its last
    token, as a run that has come to its end keeps its last state.

    Args:
        lm: The model.
        sequences: Token ids: a prompt, and after it, where ``pilot`` points are asked, its reply's
            tokens.
        prompt_lengths: Tokens of each sequence that are the prompt's, at least 1.
        points: What to read; layers are resolved numbers.
        texts: The requests' plain texts, to be carried along.
        answers: Reply tokens in front of each sequence's answer, for ``answer`` points; none: the
            replies are all answer.
        visions: The images of each sequence's prompt; none: text alone.
        batch_tokens: Most tokens in a batch, padding included; a longer sequence runs alone.
        dtype: Of the states returned; None keeps the model's.
        device: Where the states are recording.
        progress: Called with (sequences done, n) after each batch.

    Returns:
        The states ``[n, d]`` (windows ``[n, w, d]`` with masks ``[n, w]``), in the order of
        ``sequences``.

    Raises:
        SettingError: no points, a layer or block that does not exist, or numbers that do not fit
            together.
        ModelError: an output of a block in which it cannot be found.
        ActivationError: a pilot point of a sequence without a reply; states that are NaN or
            infinite, naming point and row.
        ContextLengthError: a sequence that the model cannot take.
    """
    check_request(lm, sequences, prompt_lengths, points, texts, batch_tokens)
    starts = answers or [0] * len(sequences)
    rows = [
        list(row[: _needed(length, start, points)])
        for row, length, start in zip(sequences, prompt_lengths, starts, strict=True)
    ]
    plan = _Plan(points, prompt_lengths, starts)
    recording = Recording(prompt_lengths, torch.device(device), dtype)
    done = 0
    with lm.lock, Reader(lm, [point.site for point in points]) as reader:
        lengths = [len(row) for row in rows]
        for batch in length_batches(
            lengths, lm.traits, pass_tokens=lm.pass_tokens, batch_tokens=batch_tokens
        ):
            reader.keep = plan.columns(batch, [len(rows[i]) for i in batch])
            part = [rows[i] for i in batch]
            lm.run_backbone(
                *lm.pad(part), lm.collate([visions[i] for i in batch] if visions else [], part)
            )
            plan.hand_over(batch, reader.states, recording)
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    return recording.activations(points, texts)


def check_request(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int],
    points: Sequence[ReadPoint],
    texts: Sequence[str],
    batch_tokens: int,
) -> None:
    """Refuse what :func:`record` cannot do, before anything is run; arguments and errors are its
    own."""
    if not sequences:
        raise SettingError("record: there must be one sequence or more; got none")
    if len(lengths) != len(sequences) or (texts and len(texts) != len(sequences)):
        raise SettingError(
            f"record: one prompt length and one text a sequence, please; got {len(sequences)} "
            f"sequences, {len(lengths)} lengths, {len(texts)} texts"
        )
    if batch_tokens < 1:
        raise SettingError(f"record: batch_tokens must be 1 or more; got {batch_tokens}")
    check_points(lm, points)
    pilots = any(p.position.kind in RUNNING and p.position.index for p in points)
    limit = lm.context_length
    for i, (row, length) in enumerate(zip(sequences, lengths, strict=True)):
        if not 1 <= length <= len(row):
            raise SettingError(
                f"record: prompt length of sequence {i} must lie in 1..{len(row)}; got {length}"
            )
        if pilots and length == len(row):
            raise ActivationError(
                f"sequence {i} has no reply token, but a pilot point is asked for; generate first"
            )
        if limit is not None and len(row) > limit:
            raise ContextLengthError(
                f"sequence {i} has {len(row)} tokens; {lm.model_id} takes {limit}"
            )


def check_points(lm: LanguageModel, points: Sequence[ReadPoint]) -> None:
    """Refuse points that no pass over prompts and replies can read.

    Raises:
        SettingError: no points, a layer that is not resolved or does not exist, or a point that is
            read after appended tokens.
    """
    if not points:
        raise SettingError("record: there must be one read point or more; got none")
    for point in points:
        if not isinstance(point.site, Output) and point.layer != lm.layer(point.layer):
            raise SettingError(
                f"record: read point {point} needs a resolved layer in 0..{lm.num_layers}"
            )
    reread = [str(p) for p in points if p.position.kind in REREAD]
    if reread:
        raise SettingError(f"record: {', '.join(reread)} is read after appended tokens; use reread")


@dataclass
class Recording:
    """States of n requests by point, filled batch by batch.

    Args:
        lengths: Prompt tokens of each request.
        device: Where they are recording.
        dtype: Of the states; None keeps the model's.

    Attributes:
        states: By point, ``[n, d]``, of windows ``[n, w, d]``.
        masks: By window point, ``[n, w]`` bool.
    """

    lengths: Sequence[int]
    device: torch.device
    dtype: torch.dtype | None
    states: dict[ReadPoint, Tensor] = field(default_factory=dict)
    masks: dict[ReadPoint, Tensor] = field(default_factory=dict)

    def place(self, point: ReadPoint, batch: Sequence[int], part: Tensor, valid: Tensor) -> None:
        """Take the states ``part [b, w, d]`` of the requests ``batch``.

        Args:
            valid: ``[b, w]`` bool: where ``part`` holds a token's state, not padding.

        Raises:
            ActivationError: states that are not finite.
        """
        rows = torch.tensor(batch, device=self.device)
        valid = valid.to(self.device)
        part = part.to(self.device, self.dtype).masked_fill(~valid[:, :, None], 0)
        self._check_finite(point, part, batch)
        if point.position.kind == "mean":
            part = mean_over(part, valid)[:, None].to(part.dtype)
        if point not in self.states:
            self._allocate(point, part)
        if point in self.masks:
            width = part.shape[1]
            self.masks[point][rows, -width:] = valid
            self.states[point][rows, -width:] = part
        else:
            self.states[point][rows] = part[:, 0]

    def activations(self, points: Sequence[ReadPoint], texts: Sequence[str]) -> Activations:
        """All of it, in the order of ``points``."""
        states = {point: self.states[point] for point in points}
        return Activations(
            states, {p: self.masks[p] for p in states if p in self.masks}, tuple(texts)
        )

    def _allocate(self, point: ReadPoint, part: Tensor) -> None:
        n, shape = len(self.lengths), part.shape[1:]
        if point.position.kind == "window":
            shape = torch.Size([point.position.index or max(self.lengths), *shape[1:]])
            self.masks[point] = torch.zeros((n, shape[0]), dtype=torch.bool, device=self.device)
        else:
            shape = shape[1:]
        self.states[point] = torch.zeros((n, *shape), dtype=part.dtype, device=self.device)

    def _check_finite(self, point: ReadPoint, part: Tensor, batch: Sequence[int]) -> None:
        bad = ~torch.isfinite(part).flatten(1).all(1)
        if bad.any():
            row = min(batch[int(i)] for i in bad.nonzero())
            raise ActivationError(
                f"states at {point} are not finite (row {row} of {len(self.lengths)}, as "
                f"{part.dtype}); a wider dtype may hold them"
            )


def mean_over(states: Tensor, valid: Tensor) -> Tensor:
    """Mean ``[b, d]``, float32, of the states ``[b, w, d]`` of the tokens that ``valid`` ``[b, w]``
    names; what stands elsewhere must be zero."""
    return states.float().sum(1) / valid.sum(1, keepdim=True)


def _after(position: Position, start: int) -> int:
    """Reply tokens that must have been fed at ``position``, where the answer begins after ``start``
    of them."""
    return {"pilot": position.index, "answer": start + position.index}.get(position.kind, 0)


def _needed(prompt_length: int, start: int, points: Sequence[ReadPoint]) -> int:
    """Tokens after which nothing is read any more."""
    return prompt_length + max(_after(p.position, start) for p in points)


@dataclass
class _Plan:
    """Which columns of a batch are read at which point.

    Args:
        points: What is read.
        prompt_lengths: Prompt tokens of each sequence.
        answers: Reply tokens in front of each sequence's answer.
    """

    points: Sequence[ReadPoint]
    prompt_lengths: Sequence[int]
    answers: Sequence[int]
    _columns: dict[Position, Tensor] = field(default_factory=dict)
    _valid: dict[Position, Tensor] = field(default_factory=dict)

    def columns(self, batch: Sequence[int], lengths: Sequence[int]) -> dict[Site, Keep]:
        """Work out the columns ``[b, w]`` of every position in the left-padded batch; what to keep
        of each site."""
        width = max(lengths)
        size = torch.tensor(lengths)
        start = width - size
        prompt = torch.tensor([self.prompt_lengths[i] for i in batch])
        for position in {point.position for point in self.points}:
            if position.kind in SPANS:
                most = int(prompt.max())  # of this batch: no row of it has more prompt tokens
                steps = torch.arange(min(position.index or most, most) - 1, -1, -1)
                columns = (start + prompt - 1)[:, None] - steps
            else:
                after = torch.tensor([_after(position, self.answers[i]) for i in batch])
                columns = (start + torch.minimum(prompt - 1 + after, size - 1))[:, None]
            self._valid[position] = columns >= start[:, None]
            self._columns[position] = columns.clamp_min(0)
        sites = {point.site for point in self.points}
        return {site: self._keep(site) for site in sites}

    def _at(self, site: Site) -> list[ReadPoint]:
        return [point for point in dict.fromkeys(self.points) if point.site == site]

    def _keep(self, site: Site) -> Keep:
        columns = torch.cat([self._columns[point.position] for point in self._at(site)], 1)

        def keep(hidden: Tensor) -> Tensor:
            where = columns.to(hidden.device)
            return hidden[torch.arange(hidden.shape[0], device=hidden.device)[:, None], where]

        return keep

    def hand_over(
        self, batch: Sequence[int], states: dict[Site, Tensor], recording: Recording
    ) -> None:
        """Sort what was kept, ``[b, all columns, d]`` by site, into the results."""
        for site, kept in states.items():
            points = self._at(site)
            widths = [self._columns[p.position].shape[1] for p in points]
            parts = torch.split(kept, widths, dim=1)
            for point, part in zip(points, parts, strict=True):
                recording.place(point, batch, part, self._valid[point.position])
