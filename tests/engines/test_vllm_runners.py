"""The logits processor under vLLM's V2 model runner, at the level of its interface: it must change
logits as it does under the V1 runner, whose real engine the other tests run. Running V2 itself
needs a GPU."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from safeswitch.core.types import Position, ReadPoint
from safeswitch.engines.settings import GuardSettings
from safeswitch.engines.vllm.guard import Guard, Tenant
from safeswitch.engines.vllm.live import keep
from safeswitch.engines.vllm.recorder import StateRecorder
from safeswitch.engines.vllm.settings import Task
from safeswitch.switch.actuators.base import LowRankHead
from safeswitch.switch.gate import Gate, Stage
from tests.engines.test_vllm_guard import Axis
from tests.engines.vllm_made import HAVE_VLLM, needs_vllm

pytestmark = [needs_vllm, pytest.mark.filterwarnings("ignore")]
D, TOP, V, STOP = 4, 3, 7, 6
PROMPTS, NEW, SLOTS = 24, 6, 4


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no engine whose settings could be looked at."""
    if HAVE_VLLM:
        monkeypatch.setattr(
            "safeswitch.engines.vllm.processor.refuse_unless_supported",
            lambda config, settings: None,
        )


class Model:
    """Hands out scripted states, as a guarded model does."""

    def __init__(self) -> None:
        gate = Gate(
            stage1=Stage(Axis(ReadPoint(TOP, Position("prompt_end")), 0), 0.5),
            stage2=Stage(Axis(ReadPoint(2, Position("pilot", 2)), 1), 0.5),
            watch=Stage(Axis(ReadPoint(2, Position("pilot", 2)), 2), 0.9), watch_every=3,
        )  # fmt: skip
        head = LowRankHead(torch.ones(1, D), torch.arange(float(V))[:, None])
        only = Gate(stage1=Stage(Axis(ReadPoint(TOP, Position("prompt_end")), 0), 0.5))
        self.safeswitch_guard = Guard(
            {"default": Tenant("default", gate, head), "one": Tenant("one", only, head)}, TOP
        )
        self.safeswitch_recorder = StateRecorder([])
        self.safeswitch_stop_token, self.safeswitch_top = STOP, TOP
        self.states = torch.empty(0)

    def safeswitch_take(self, rows: int) -> Tensor:
        assert len(self.states) == rows
        return self.states

    def safeswitch_read(self, sampled: Tensor, point: ReadPoint) -> Tensor:
        return sampled * (1 if point.layer == TOP else 2)

    def safeswitch_difference(self, head: LowRankHead, hidden: Tensor) -> Tensor:
        return head.apply(torch.zeros(()), hidden)


def state(request: int, fed: int) -> Tensor:
    """The state of a request after so many reply tokens; the same under both runners."""
    return torch.randn(D, generator=torch.Generator().manual_seed(1000 * request + fed))


def mode(request: int) -> str:
    return "observe" if request % 7 == 3 else "pilot" if request % 2 else "enforce"


def params(request: int) -> Any:
    task = Task(str(request), "one" if request % 5 == 0 else "default", mode(request))
    return SimpleNamespace(extra_args={"safeswitch": task.to_args()})


def schedule() -> list[list[tuple[int, int]]]:
    """Steps of a continuous batch: (request, reply tokens fed) in the order of its rows; below 0 a
    prompt is read in part."""
    draw, waiting, running, steps = random.Random(0), list(range(PROMPTS)), dict[int, int](), []
    while waiting or running:
        while waiting and len(running) < SLOTS:
            running[waiting.pop(0)] = draw.choice((-2, -1, 0))
        rows = list(running.items())
        draw.shuffle(rows)
        steps.append(rows)
        running = {request: fed + 1 for request, fed in rows if fed + 1 < NEW}
    return steps


def settings(model: Model) -> Any:
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(),
        additional_config={"safeswitch": GuardSettings({"default": "/x"}).to_dict()},
    )
    keep(config, model)
    return config


def under_v1() -> tuple[dict[tuple[int, int], Tensor], Guard]:
    """Logits by request and tokens fed. Rows keep their places; whoever ends is replaced."""
    from vllm.v1.sample.logits_processor import BatchUpdate

    from safeswitch.engines.vllm.processor import SafeSwitchProcessor

    model = Model()
    processor = SafeSwitchProcessor(settings(model))
    places: list[int | None] = [None] * SLOTS
    outputs: dict[int, list[int]] = {}
    seen = {}
    for rows in schedule():
        now = dict(rows)
        removed = [
            i for i, request in enumerate(places) if request is not None and request not in now
        ]
        for i in removed:
            places[i] = None
        added = []
        for request in now:
            if request not in places:
                i = places.index(None)
                places[i], outputs[request] = request, []
                added.append((i, params(request), [], outputs[request]))
        moved: list[Any] = []
        while None in places and any(p is not None for p in places[places.index(None) :]):
            from vllm.v1.sample.logits_processor import MoveDirectionality

            hole = places.index(None)
            last = max(i for i, p in enumerate(places) if p is not None)
            places[hole], places[last] = places[last], None
            moved.append((last, hole, MoveDirectionality.UNIDIRECTIONAL))
        processor.update_state(BatchUpdate(SLOTS, removed, added, moved))
        batch = [request for request in places if request is not None]
        for request in batch:
            outputs[request][:] = [1] * max(0, now[request])
        model.states = torch.stack([state(request, now[request]) for request in batch])
        logits = processor.apply(torch.zeros(len(batch), V))
        seen |= {
            (request, now[request]): row
            for request, row in zip(batch, logits, strict=True)
            if now[request] >= 0
        }
    return seen, model.safeswitch_guard


def under_v2() -> tuple[dict[tuple[int, int], Tensor], Guard]:
    """The same in slots, with rows in another order at every step."""
    import numpy as np
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsContext,
        LogitsProcRequestState,
    )

    from safeswitch.engines.vllm.processor import SafeSwitchProcessor

    model, lengths, nothing = Model(), np.zeros(SLOTS, dtype=np.int32), SimpleNamespace()
    known = LogitsProcRequestState(
        device=torch.device("cpu"), max_num_reqs=SLOTS, vocab_size=V, all_token_ids=nothing,
        prompt_len=SimpleNamespace(np=lengths), prefill_len=nothing, total_len=nothing,
    )  # fmt: skip
    processor = SafeSwitchProcessor(settings(model), known)
    slots: dict[int, int] = {}
    seen = {}
    for rows in schedule():
        now = dict(rows)
        slots = {request: slot for request, slot in slots.items() if request in now}
        for request in now:
            if request not in slots:
                slots[request] = min(set(range(SLOTS)) - set(slots.values()))
                lengths[slots[request]] = 10 + request
                processor.add_request(slots[request], params(request))
        mapping = np.array([slots[request] for request, _ in rows])
        length = np.array([lengths[slots[request]] + fed for request, fed in rows])
        everything = torch.from_numpy(mapping)
        context = LogitsContext(
            everything, everything, mapping, torch.zeros(len(rows)), everything, everything, length
        )
        model.states = torch.stack([state(*row) for row in rows])
        logits = processor.apply(torch.zeros(len(rows), V), context)
        seen |= {row: out for row, out in zip(rows, logits, strict=True) if row[1] >= 0}
    return seen, model.safeswitch_guard


def test_both_runners_change_the_same_logits() -> None:
    (one, first), (two, second) = under_v1(), under_v2()
    assert (
        set(one) == set(two) == {(request, fed) for request in range(PROMPTS) for fed in range(NEW)}
    )
    for at in one:
        torch.testing.assert_close(
            one[at], two[at], msg=lambda text, at=at: f"request and fed {at}: {text}"
        )
    names = {str(request): None for request in range(PROMPTS)}
    decisions = first.take(names)
    assert {k: (d.fired, d.stage, d.token_index) for k, d in decisions.items()} == {
        k: (d.fired, d.stage, d.token_index) for k, d in second.take(names).items()
    }
    assert {d.stage for d in decisions.values() if d.fired} >= {"stage1", "stage2", "watch"}
    stopped = {at for at, row in one.items() if row[STOP] == 0 and row[0] == float("-inf")}
    for how in ("enforce", "pilot"):
        assert any(mode(request) == how for request, _ in stopped)
    for request, fed in stopped:
        waits = (
            mode(request) == "enforce" and "stage1" in decisions[str(request)].scores and fed < 2
        )
        assert waits or (
            decisions[str(request)].fired and fed >= decisions[str(request)].token_index
        )
