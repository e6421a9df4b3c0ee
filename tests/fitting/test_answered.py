"""Of many requests the base model answers some; stage 1 learns from the prompts of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Example, Reply
from safeswitch.data.splits import grouped_split
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.fit import answered_rows
from safeswitch.fitting.settings import FitSettings
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests, settings, two_of_three

PARTS = grouped_split(requests())


def sourced(n: int) -> list[Example]:
    """A third from ``web``, the rest from ``books``; every fourth is unsafe."""
    rows: list[Example] = []
    for i, row in enumerate((requests() * (n // len(requests()) + 1))[:n]):
        label: Any = "unsafe" if i % 4 == 0 else "safe"
        rows.append(replace(row, label=label, source="books" if i % 3 else "web"))
    return rows


def test_each_label_and_source_keeps_its_fraction() -> None:
    rows = sourced(240)
    chosen = answered_rows({"train": rows}, FitSettings(answered=60))["train"]
    assert len(chosen) == len(set(chosen)) == 60
    counts = Counter((rows[i].label, rows[i].source) for i in chosen)
    whole = Counter((e.label, e.source) for e in rows)
    assert all(abs(counts[kind] - whole[kind] / 4) <= 1 for kind in whole)


@pytest.mark.parametrize(("budget", "needed"), [(0.01, 99), (0.03, 33), (0.05, 19)])
def test_a_threshold_on_replies_has_the_safe_requests_that_it_needs(
    budget: float, needed: int
) -> None:
    rows = sourced(400)
    chosen = answered_rows({"calibration": rows}, FitSettings(answered=8, budget=budget))
    safe = sum(not rows[i].unsafe for i in chosen["calibration"])
    assert needed <= safe <= needed + 7


def test_no_part_has_more_answered_than_it_holds() -> None:
    rows = sourced(30)
    chosen = answered_rows({"calibration": rows, "train": rows}, FitSettings())
    assert chosen == {"calibration": list(range(30)), "train": list(range(30))}


class Counting(TransformersEngine):
    """Counts the requests that are answered, and those whose prompt alone is read."""

    asked: Counter[bool]

    def collect(
        self, prompts: Sequence[Any], *args: Any, max_new_tokens: int, **options: Any
    ) -> tuple[list[Reply], Activations]:
        self.asked[max_new_tokens > 0] += len(prompts)
        return super().collect(prompts, *args, max_new_tokens=max_new_tokens, **options)


def fitted(on: TransformersEngine, answered: int) -> Switch:
    chosen = settings(readers=("steps",), layers=(1, 2), answered=answered)
    return Switch.fit(on, PARTS, chosen, complied=two_of_three)


def test_stage_one_is_the_same_however_few_are_answered() -> None:
    counting = Counting(engine().lm, batch_size=64)
    counting.asked = Counter()
    some, every = fitted(counting, 24), fitted(engine(), 10**6)
    total = sum(len(rows) for rows in PARTS.values())
    told = {name: some.record["data"][name].get("answered") for name in PARTS}
    assert counting.asked[True] + counting.asked[False] == total
    assert counting.asked[True] == sum(told[p] or len(PARTS[p]) for p in PARTS) < total
    assert told["train"] == 24
    assert "answered" not in every.record["data"]["train"]
    _, states = engine().collect(requests(), every.gate.prompt_points, max_new_tokens=0)
    one, other = some.gate.stage1, every.gate.stage1
    assert one is not None
    assert other is not None
    torch.testing.assert_close(
        one.prober.score(states), other.prober.score(states), atol=2e-3, rtol=0
    )
    assert one.threshold == pytest.approx(other.threshold, abs=2e-3)


def test_none_answered_is_refused() -> None:
    with pytest.raises(SettingError, match="answered must be 1 or more; got 0"):
        FitSettings(answered=0)
