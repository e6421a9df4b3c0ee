"""A fit that is killed goes on from what was kept, and ends in the switch that one run gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safeswitch.activations.states import Activations
from safeswitch.core.types import Position, ReadPoint, Reply
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.kept import Kept
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests, settings, two_of_three
from tests.tiny import tiny_lm

POINTS = (
    ReadPoint(1, Position("prompt_end")),
    ReadPoint(2, Position("window", 5)),
    ReadPoint(2, Position("mean", 5)),
    ReadPoint(2, Position("pilot", 2)),
)
UNEQUAL = ["a", "a long river stone cloud", "ZAP it", "b c d"]


class Counting(TransformersEngine):
    """Counts what it is asked; at the request ``last`` its process is killed."""

    def __init__(self, last: int = 10**9) -> None:
        super().__init__(tiny_lm("llama"), batch_size=64)
        self.asked, self.last = 0, last

    def collect(
        self, prompts: Sequence[Any], *args: Any, **options: Any
    ) -> tuple[list[Reply], Activations]:
        self.asked += len(prompts)
        if self.asked > self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().collect(prompts, *args, **options)


def fit_kept(on: Counting, folder: Path) -> Switch:
    return Switch.fit(Kept(on, folder, chunk=16), requests(), settings(), complied=two_of_three)


def test_what_is_kept_is_what_the_engine_gives(tmp_path: Path) -> None:
    kept = Kept(engine(), tmp_path, chunk=3)
    plain, activations = engine().collect(UNEQUAL, POINTS, max_new_tokens=4)
    for _ in range(2):
        replies, found = kept.collect(UNEQUAL, POINTS, max_new_tokens=4)
        assert [(r.token_ids, r.text, r.generated, r.prompt_tokens) for r in replies] == [
            (r.token_ids, r.text, r.generated, r.prompt_tokens) for r in plain
        ]
        assert found.texts == activations.texts
        assert set(found.states) == set(activations.states)
        assert all(torch.equal(found.masks[p], activations.masks[p]) for p in activations.masks)
        assert all(
            torch.allclose(found.states[p], activations.states[p], atol=1e-5) for p in POINTS
        )
    longer = kept.generate(UNEQUAL, max_new_tokens=6, do_sample=False)
    assert [r.token_ids for r in longer] == [
        r.token_ids for r in engine().generate(UNEQUAL, max_new_tokens=6, do_sample=False)
    ]


def test_a_killed_fit_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    whole = Counting()
    expected = fit_kept(whole, tmp_path / "whole")
    lines = "from pathlib import Path; from tests.fitting.test_kept import Counting, fit_kept"
    code = f"{lines}; fit_kept(Counting(last=40), Path({str(tmp_path / 'cut')!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    again = Counting()
    assert fit_kept(again, tmp_path / "cut").fingerprint == expected.fingerprint
    assert again.asked == whole.asked - 32


def test_what_is_kept_counts_as_done_and_what_is_asked_as_it_goes(tmp_path: Path) -> None:
    kept = Kept(TransformersEngine(tiny_lm("llama"), batch_size=2), tmp_path, chunk=3)
    for new in (4, 0):
        for _ in range(2):
            told: list[int] = []
            kept.collect(
                UNEQUAL, POINTS if new else POINTS[:2], max_new_tokens=new, progress=told.append
            )
            assert sum(told) == len(UNEQUAL)
    for _ in range(2):
        told = []
        kept.generate(UNEQUAL, max_new_tokens=4, do_sample=False, progress=told.append)
        assert sum(told) == len(UNEQUAL)
