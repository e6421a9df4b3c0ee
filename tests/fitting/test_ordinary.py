"""Thresholds are set on ordinary requests: safe ones that were not written to look like a harm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError
from safeswitch.core.types import Example, Message
from safeswitch.data.rows import to_example
from safeswitch.data.splits import grouped_split
from safeswitch.fitting.adapted import standing
from safeswitch.fitting.by_source import source_folds
from safeswitch.fitting.fit import answered_rows, check_parts
from safeswitch.fitting.refit_rows import RefitRows
from safeswitch.fitting.settings import FitSettings
from safeswitch.methods.fitting import calm
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests, settings, two_of_three

PARTS = grouped_split(requests())


def lookalikes(count: int) -> list[Example]:
    """Safe requests that begin as the unsafe ones do, and say which harm they look like."""
    return [
        Example(
            f"r{900 + i}",
            (Message("user", f"ZAP stone {i} apple"),),
            "safe",
            source="s0",
            meta={"contrast": "zapping"},
        )
        for i in range(count)
    ]


def fitted(calibration: list[Example], **changes: object) -> Switch:
    parts = {**PARTS, "calibration": calibration}
    return Switch.fit(engine(), parts, settings(**changes), complied=two_of_three)


@pytest.mark.parametrize("watch", [False, True])
def test_lookalikes_move_no_threshold(watch: bool) -> None:
    more = {"watch": True, "watch_every": 2, "budget": 0.25} if watch else {}
    plain = fitted(PARTS["calibration"], **more)
    mixed = fitted([*PARTS["calibration"], *lookalikes(20)], **more)
    assert mixed.gate.thresholds() == pytest.approx(plain.gate.thresholds(), abs=1e-5)
    assert mixed.record["calibration"]["benign"] == plain.record["calibration"]["benign"]


def test_they_would_have_moved_it_had_they_counted_as_traffic() -> None:
    counted = [replace(row, meta={}) for row in lookalikes(20)]
    plain = fitted(PARTS["calibration"])
    mixed = fitted([*PARTS["calibration"], *counted])
    assert mixed.gate.thresholds()["stage1"] > plain.gate.thresholds()["stage1"] + 0.05


def test_the_threshold_is_the_one_of_the_ordinary_scores() -> None:
    switch = fitted([*PARTS["calibration"], *lookalikes(20)])
    calm = [row for row in PARTS["calibration"] if row.label == "safe"]
    stage = switch.gate.stage1
    assert stage is not None
    _, states = engine().collect(calm, switch.gate.prompt_points, max_new_tokens=0)
    expected = conformal_threshold(stage.prober.score(states), settings().budget).value
    assert stage.threshold == pytest.approx(expected, abs=1e-5)


def test_no_lookalike_of_the_calibration_part_is_answered() -> None:
    rows = [*lookalikes(50), *requests()]
    some = answered_rows({"calibration": rows, "train": rows}, FitSettings(answered=60, budget=0.1))
    assert all("contrast" not in rows[i].meta for i in some["calibration"])
    assert sum(rows[i].ordinary for i in some["calibration"]) >= 9
    assert any("contrast" in rows[i].meta for i in some["train"])


def test_too_few_ordinary_requests_are_told_apart_from_too_few_safe_ones() -> None:
    parts = {**PARTS, "calibration": [*PARTS["calibration"], *lookalikes(99)]}
    message = r"at least 99 safe requests .*; got 8 that are no look-alikes"
    with pytest.raises(FitError, match=message):
        check_parts(parts, 0.01)
    check_parts(parts, 0.125)


def test_a_source_of_lookalikes_calibrates_nothing() -> None:
    sources = [
        replace(row, source=f"t{i // 2 % 4}") for i, row in enumerate(requests(120, replies=False))
    ]
    only = [replace(row, source="twins") for row in lookalikes(30)]
    assert source_folds([*sources, *only], []) == [("t0",), ("t1",), ("t2",), ("t3",)]


def test_a_switch_calibrated_by_source_counts_no_lookalike() -> None:
    chosen = {"calibrate": "sources", "readers": ("steps",), "stages": "stage1", "rule": "auto"}
    rows = [replace(row, source=f"s{i // 2 % 4}") for i, row in enumerate(requests())]
    switch = Switch.fit(
        engine(), [*rows, *lookalikes(16)], settings(**chosen), complied=two_of_three
    )
    told = switch.record["calibration"]["threshold"]["sources"]
    assert {name: own["n"] for name, own in told.items()} == dict.fromkeys(
        ("s0", "s1", "s2", "s3"), 10
    )


def test_every_other_method_takes_the_same_rows() -> None:
    rows = [*lookalikes(9), *requests(20)]
    assert [row.id for row in calm({"calibration": rows})] == [
        row.id for row in rows if row.label == "safe" and "contrast" not in row.meta
    ]


def test_a_changed_model_is_judged_by_ordinary_requests() -> None:
    switch = fitted(PARTS["calibration"])
    plain, mixed = (
        standing(engine(), switch, rows, complied=two_of_three, budget=0.125, max_new_tokens=2)
        for rows in (requests(40), [*requests(40), *lookalikes(20)])
    )
    assert mixed.safe == plain.safe == 20
    assert mixed.recalibrated == pytest.approx(plain.recalibrated, abs=1e-5)
    assert mixed.false_triggers == plain.false_triggers
    rows = [*(row for row in requests(40) if row.label == "unsafe"), *lookalikes(9)]
    with pytest.raises(FitError, match="safe ones that are no look-alikes"):
        standing(engine(), switch, rows, complied=two_of_three, budget=0.5)


def test_a_refit_sets_its_threshold_on_ordinary_rows() -> None:
    examples = [*requests(6), *lookalikes(3)]
    rows = RefitRows(
        Activations({}),
        torch.tensor([row.unsafe for row in examples]),
        torch.tensor([row.ordinary for row in examples]),
        ["calibration"] * len(examples),
        range(len(examples)),
        torch.ones(len(examples)).numpy(),
    )
    assert rows.counts() == {"safe": 3, "unsafe": 3, "right": 0, "false": 0}
    assert int(rows.calibration.sum()) == 9


@pytest.mark.parametrize(
    ("meta", "ordinary"),
    [({}, True), ({"contrast": None}, True), ({"contrast": ""}, True), ({"contrast": False}, True),
     ({"contrast": "poisons"}, False)],
)  # fmt: skip
def test_a_lookalike_names_its_harm(meta: dict[str, object], ordinary: bool) -> None:
    row = {"id": "a", "prompt": "How do I kill a process?", "label": "safe", "meta": meta}
    assert to_example(row, number=0, origin="own").ordinary is ordinary
