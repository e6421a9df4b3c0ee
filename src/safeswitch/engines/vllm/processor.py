"""The one logits processor, for both of vLLM's model runners.

Under the V1 runner (``v1/sample/logits_processor/interface.py``, read in 0.32.0) a request is known
by its index in the batch, and its reply tokens by the length of a list that the runner keeps
(placeholders of async scheduling included). Under the V2 runner
(``v1/worker/gpu/sample/logits_processor/interface.py``, read in 0.32.0; run at interface level
only) it is known by its slot, and reply tokens by its position. Both lead to
:class:`safeswitch.engines.vllm.guard.Guard`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as V2LogitsProcessor,
)

from safeswitch.core.types import ReadPoint
from safeswitch.engines.settings import GuardSettings, switched_off
from safeswitch.engines.vllm.guard import Guard, Row
from safeswitch.engines.vllm.live import at_work, find
from safeswitch.engines.vllm.load import refuse_unless_supported
from safeswitch.engines.vllm.settings import Task
from safeswitch.switch.actuators.base import HeadActuator

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

    from safeswitch.engines.vllm.model import GuardedModel


class SafeSwitchProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Reads, judges, and changes the logits of the rows that have fired."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that came around the guarded front end."""
        if not switched_off() and Task.of(sampling_params.extra_args) is None:
            raise ValueError(
                "this engine takes requests through SafeSwitch's front end only (safeswitch serve, "
                "VLLMEngine)"
            )

    def __init__(
        self, vllm_config: VllmConfig, second: Any = None, is_pin_memory: bool = False
    ) -> None:
        settings = GuardSettings.parse(vllm_config.additional_config)
        refuse_unless_supported(vllm_config, settings)
        at_work(vllm_config, self)
        self._config, self._settings = vllm_config, settings
        self._slots: dict[int, tuple[Row | Task, list[int]]] = {}
        self._v2: Any = second if hasattr(second, "prompt_len") else None

    def is_argmax_invariant(self) -> bool:
        return False

    @property
    def guard(self) -> Guard:
        """The guard over the model that this engine has loaded."""
        return self._model.safeswitch_guard

    @property
    def _model(self) -> GuardedModel:
        model = find(self._config)
        assert model is not None  # nothing is sampled before the model is loaded
        return model

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: requests leave, come and change places."""
        if batch_update is None or switched_off():
            return
        for index in batch_update.removed:
            self._leave(self._slots.pop(index, None))
        for index, params, _, output in batch_update.added:
            self._leave(self._slots.pop(index, None))
            self._enter(index, params, output)
        for a, b, direction in batch_update.moved:
            first, second = self._slots.pop(a, None), self._slots.pop(b, None)
            if first is not None:
                self._slots[b] = first
            if direction == MoveDirectionality.SWAP and second is not None:
                self._slots[a] = second
            elif direction != MoveDirectionality.SWAP:
                self._leave(second)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request takes a slot."""
        if switched_off():
            return False
        self._leave(self._slots.pop(req_idx, None))
        self._enter(req_idx, sampling_params, [])
        return req_idx in self._slots

    def _enter(self, slot: int, params: SamplingParams, output: list[int]) -> None:
        task = Task.of(params.extra_args)
        if task is not None and task.mode.startswith("record"):
            self._slots[slot] = (task, output)
        elif task is None or task.mode != "off":
            task = task or self.guard.unstamped()
            self._slots[slot] = (self.guard.add(task), output)

    @staticmethod
    def _leave(entry: tuple[Row | Task, list[int]] | None) -> None:
        if entry is not None and isinstance(entry[0], Row):
            entry[0].live = False

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """The ``logits`` ``[rows, V]``, changed in place: every row that is due is judged, and the
        flagged ones get their other head, or the stop token."""
        if switched_off():
            return logits
        if ctx is None:
            known = [
                (i, row, len(output))
                for i, (row, output) in self._slots.items()
                if i < logits.shape[0]
            ]
        else:
            known = self._v2_rows(ctx)
        model, guard = self._model, self.guard
        sampled = model.safeswitch_take(logits.shape[0])
        recorded = [
            (i, t.id, fed + t.fed, t.mode == "record-end")
            for i, t, fed in known
            if isinstance(t, Task)
        ]

        def read(point: ReadPoint) -> Tensor:
            return model.safeswitch_read(sampled, point)

        model.safeswitch_recorder.step(recorded, read)
        rows = [(i, row, fed) for i, row, fed in known if isinstance(row, Row)]
        switch, stop = guard.step(rows, read)
        token = model.safeswitch_stop_token
        _forbid(logits, [i for i, row, _ in rows if row.task.mode != "observe"], token)
        by_head: dict[HeadActuator, list[int]] = {}
        for i, row, _ in rows:
            if i in switch:
                assert row.tenant.head is not None  # a switch without one never fires here
                by_head.setdefault(row.tenant.head, []).append(i)
        for head, places in by_head.items():
            hidden = read(ReadPoint(model.safeswitch_top))[places]
            logits[places] += model.safeswitch_difference(head, hidden).to(logits.dtype)
            _decide(logits, places)
        if stop:
            logits[stop] = float("-inf")
            logits[stop, token] = 0.0
        return logits

    def _v2_rows(self, ctx: Any) -> list[tuple[int, Row | Task, int]]:
        """Rows that end a prompt or a reply so far; a row in the middle of a prompt is sampled for
        nothing."""
        prompt = self._v2.prompt_len.np
        rows = []
        for i, (slot, length) in enumerate(
            zip(ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np, strict=True)
        ):
            fed = int(length) - int(prompt[slot])
            if fed >= 0 and int(slot) in self._slots:
                rows.append((i, self._slots[int(slot)][0], fed))
        return rows


def _decide(logits: Tensor, places: list[int]) -> None:
    """Leave each row its likeliest token alone: a refusal is never drawn.

    Nano's refusal, sampled at temperature 1, complies in 13 % of cases. It also puts the choice out
    of reach of whatever vLLM does to the logits behind this processor.
    """
    rows = logits[places]
    best = rows.argmax(-1, keepdim=True)
    only = torch.full_like(rows, float("-inf"))
    logits[places] = only.scatter(-1, best, rows.gather(-1, best))


def _forbid(logits: Tensor, places: list[int], token: int) -> None:
    if places:
        logits[torch.tensor(places, device=logits.device), token] = float("-inf")
