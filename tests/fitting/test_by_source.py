"""A threshold from benign sources left out of the fit, against the same thing written out by
hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.types import Example, Message, ReadPoint
from safeswitch.data.splits import grouped_split
from safeswitch.fitting import by_source
from safeswitch.fitting.by_source import MOST_FOLDS, calibrate_by_source, source_folds
from safeswitch.fitting.observe import ReadPrompts, observe
from safeswitch.fitting.plan import FitPlan, read_blocks
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.calibrate import source_threshold
from safeswitch.switch.card import model_card
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests, settings, two_of_three

D = 6
POINT = ReadPoint(1)
SPEC = {"kind": "steps", "blocks": [1], "ridge": 0.01}
SOURCES = ("books", "code", "maths", "news", "rude", "tea")


def made(source: str, label: Any, n: int, start: int = 0) -> list[Example]:
    words = [f"{source} {label} {i}" for i in range(start, start + n)]
    return [Example(text, (Message("user", text),), label, source=source) for text in words]


def observed(examples: Sequence[Example], seed: int) -> ReadPrompts:
    """States whose step at block 1 tells the labels apart, and leans towards unsafe in the last
    sources."""
    draw = torch.Generator().manual_seed(seed)
    unsafe = torch.tensor([e.unsafe for e in examples])
    lean = torch.tensor(
        [SOURCES.index(e.source) / 3 if e.source in SOURCES else 0.0 for e in examples]
    )
    before = torch.randn(len(examples), D, generator=draw)
    step = torch.randn(len(examples), D, generator=draw)
    step[:, 0] += 2.0 * unsafe
    step[:, 1] += lean
    activations = Activations(
        {ReadPoint(0): before, POINT: before + step}, sources=tuple(e.source for e in examples)
    )
    return ReadPrompts(tuple(examples), activations)


def parts() -> tuple[ReadPrompts, ReadPrompts, ReadPrompts]:
    found = []
    for place, rows in enumerate((20, 6, 8)):
        examples = [
            e
            for name in SOURCES
            for e in made(name, "safe", rows + SOURCES.index(name), 100 * place)
        ]
        examples += [
            *made("attacks", "unsafe", 3 * rows, 100 * place),
            *made("books", "unsafe", rows, 100 * place),
        ]
        found.append(observed(examples, place))
    return found[0], found[1], found[2]


def smallest(scores: dict[str, np.ndarray[Any, Any]], budget: float) -> float:
    """The smallest of all scores above which a mean share of at most ``budget`` lies."""
    for value in sorted(np.concatenate(list(scores.values())).tolist()):
        if np.mean([(own > value).mean() for own in scores.values()]) <= budget + 1e-12:
            return float(value)
    raise AssertionError


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.125, 0.25, 0.49])
def test_the_threshold_is_the_smallest_that_keeps_the_mean_over_sources(budget: float) -> None:
    draw = np.random.default_rng(0)
    sizes = {"large": 400, "small": 7, "strange": 16}
    scores = {name: draw.beta(1, 3, n).astype(np.float32) for name, n in sizes.items()}
    scores["strange"] = np.minimum(scores["strange"] + 0.3, 1).astype(np.float32)
    found = source_threshold({name: torch.from_numpy(own) for name, own in scores.items()}, budget)
    assert found.value == smallest(scores, budget)
    rates = {name: float((own > found.value).mean()) for name, own in scores.items()}
    assert {name: own["rate"] for name, own in found.sources.items()} == pytest.approx(rates)
    assert {name: own["n"] for name, own in found.sources.items()} == sizes
    assert found.mean == pytest.approx(np.mean(list(rates.values())))
    assert found.n == 423


def test_a_threshold_needs_a_budget_and_scores_of_every_source() -> None:
    one = torch.tensor([0.1, 0.2])
    with pytest.raises(SettingError, match="budget must lie in"):
        source_threshold({"a": one}, 0.0)
    with pytest.raises(FitError, match="no source"):
        source_threshold({}, 0.1)
    with pytest.raises(FitError, match="source 'b' has none, or NaN"):
        source_threshold({"a": one, "b": torch.tensor([torch.nan])}, 0.1)
    with pytest.raises(FitError, match="source 'b' has none"):
        source_threshold({"a": one, "b": torch.tensor([])}, 0.1)


def by_hand(
    source: str, train: ReadPrompts, all_parts: Sequence[ReadPrompts]
) -> np.ndarray[Any, Any]:
    """Scores of a source's safe requests, by sklearn, fitted on ``train`` without the source."""

    def steps(part: ReadPrompts) -> np.ndarray[Any, Any]:
        return (part.activations.at(POINT) - part.activations.at(ReadPoint(0))).double().numpy()

    names = np.array([e.source for e in train.examples])
    keep = names != source
    labels, names = train.unsafe.numpy()[keep], names[keep]
    weights = np.zeros(len(labels))
    for label in (True, False):
        there = set(names[labels == label])
        for name in there:
            own = (labels == label) & (names == name)
            weights[own] = len(labels) / 2 / len(there) / own.sum()
    scaler = StandardScaler().fit(steps(train)[keep])
    regression = LogisticRegression(C=1 / (0.01 * len(labels)), tol=1e-10, max_iter=5000)
    regression.fit(scaler.transform(steps(train)[keep]), labels, sample_weight=weights)
    tested = [
        steps(part)[[e.source == source and not e.unsafe for e in part.examples]]
        for part in all_parts
    ]
    scores: np.ndarray[Any, Any] = regression.predict_proba(
        scaler.transform(np.concatenate(tested))
    )[:, 1]
    return scores


def test_every_source_is_scored_by_a_reader_that_never_saw_it() -> None:
    three = parts()
    found = calibrate_by_source(SPEC, *three, budget=0.1, seed=0)
    scores = {name: by_hand(name, three[0], three) for name in SOURCES}
    assert found.value == pytest.approx(smallest(scores, 0.1), abs=1e-4)
    rates = {name: (own > smallest(scores, 0.1)).mean() for name, own in scores.items()}
    assert {name: own["rate"] for name, own in found.sources.items()} == pytest.approx(rates)
    assert max(rates.values()) > 0.1 > min(rates.values())


def test_a_source_that_is_left_out_leaves_neither_rows_nor_copies_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, validation, calibration = parts()
    copied = replace(train.examples[0], id="copy", source="code")  # a request of books
    train = observed([*train.examples, copied], 0)
    seen: list[tuple[str, ...]] = []
    make = by_source.make_prober

    class Noting:
        def __init__(self, spec: Any) -> None:
            self.inner = make(spec)

        def fit(self, activations: Activations, labels: Any, **options: Any) -> Any:
            held = options["validation"][0].sources
            seen.append(activations.sources + held)
            assert set(held) == set(activations.sources)
            return self.inner.fit(activations, labels, **options)

    monkeypatch.setattr(by_source, "make_prober", Noting)
    calibrate_by_source(SPEC, train, validation, calibration, budget=0.1, seed=0)
    everywhere = train.activations.sources + validation.activations.sources
    assert len(seen) == len(SOURCES)
    for name, rows in zip(SOURCES, seen, strict=True):
        assert name not in rows
        tied = name in ("books", "code")
        assert len(rows) == len(everywhere) - everywhere.count(name) - tied


def test_many_sources_are_left_out_in_groups_of_neighbours() -> None:
    names = [f"s{i:02d}" for i in range(19)]
    train = (
        [e for name in names for e in made(name, "safe", 10)]
        + made("x", "unsafe", 5)
        + made("y", "unsafe", 5)
    )
    folds = source_folds(train, [])
    assert len(folds) == MOST_FOLDS
    assert [name for fold in folds for name in fold] == names
    assert {len(fold) for fold in folds} == {2, 3}


def test_too_few_sources_are_refused_with_what_is_there() -> None:
    some = [
        *made("a", "safe", 30),
        *made("b", "safe", 9),
        *made("c", "safe", 10),
        *made("x", "unsafe", 9),
    ]
    with pytest.raises(
        FitError,
        match=r"at least 4 sources of 10 .*; 2 of these count: 'a' \(30\), 'b' \(9\), 'c' \(10\)",
    ):
        source_folds(some, [])
    rest = [*made("b", "safe", 9, 50), *made("d", "safe", 12)]
    assert source_folds(some, rest) == [("a",), ("b",), ("c",), ("d",)]
    only = [replace(e, source="a") if e.unsafe else e for e in some]
    with pytest.raises(FitError, match="none of them the only one of a label; 3 of these count"):
        source_folds(only, rest)


def test_sources_that_together_hold_all_of_a_label_cannot_be_left_out_together() -> None:
    names = [f"s{i:02d}" for i in range(9)]
    train = [e for name in names for e in made(name, "safe", 10)]
    train += [*made("s00", "unsafe", 5), *made("s01", "unsafe", 5)]
    with pytest.raises(FitError, match="without 's00', 's01' there is no unsafe request to fit on"):
        source_folds(train, [])


ROWS = [replace(e, source=f"s{i // 2 % 4}") for i, e in enumerate(requests())]
CHOSEN = settings(readers=("steps",), calibrate="sources", budget=0.1)


def test_a_switch_calibrated_by_source_records_and_shows_every_source() -> None:
    switch = Switch.fit(engine(), ROWS, CHOSEN, complied=two_of_three)
    told = switch.record["calibration"]["threshold"]
    assert {name: own["n"] for name, own in told["sources"].items()} == dict.fromkeys(
        ("s0", "s1", "s2", "s3"), 10
    )
    assert told["mean"] <= 0.1
    assert switch.gate.stage1 is not None
    assert switch.gate.stage1.threshold == told["value"]
    assert [str(p) for p in switch.gate.stage1.prober.points] == ["1@prompt_end", "2@prompt_end"]
    assert switch.gate.rule == "and"
    assert set(switch.record["calibration"]["caught_on_validation"]) == {"and"}
    assert f"| s2 | 10 | {told['sources']['s2']['rate']:.1%} |" in model_card(switch)
    pooled = Switch.fit(
        engine(), ROWS, replace(CHOSEN, calibrate="pooled", budget=0.125), complied=two_of_three
    )
    assert "Benign sources" not in model_card(pooled)


def test_steps_beside_text_survive_saving_and_loading(tmp_path: Path) -> None:
    chosen = replace(CHOSEN, readers=("steps", "text"), stages="stage1")
    switch = Switch.fit(engine(), ROWS, chosen, complied=two_of_three)
    switch.save_pretrained(tmp_path)
    again = Switch.from_pretrained(tmp_path)
    assert again.fingerprint == switch.fingerprint
    assert again.record["calibration"] == switch.record["calibration"]
    scores = [
        [reply.decision.scores for reply in engine().generate(ROWS[:9], made, max_new_tokens=1)]
        for made in (switch, again)
    ]
    assert scores[0] == scores[1]


def test_what_is_observed_for_fitting_knows_its_sources() -> None:
    seen = observe(engine(), ROWS[:9], [POINT], complied=two_of_three, max_new_tokens=1)
    assert seen.activations.sources == tuple(e.source for e in ROWS[:9])


def test_calibrating_by_source_needs_no_large_calibration_part() -> None:
    fewer = [e for i, e in enumerate(ROWS) if e.unsafe or i % 16 != 1]
    split = grouped_split(fewer)
    wanted = replace(CHOSEN, budget=0.02)
    with pytest.raises(FitError, match=r"budget of 0\.02 needs at least 49 safe"):
        Switch.fit(engine(), split, replace(wanted, calibrate="pooled"), complied=two_of_three)
    with pytest.raises(FitError, match=r"at least 4 sources .* 3 of these count: 's0' \(5\)"):
        Switch.fit(engine(), split, wanted, complied=two_of_three)
    assert (
        Switch.fit(engine(), ROWS, wanted, complied=two_of_three).record["calibration"][
            "threshold"
        ]["n"]
        == 40
    )
    without = {**grouped_split(ROWS), "calibration": [e for e in ROWS if e.unsafe][:3]}
    with pytest.raises(FitError, match="record of safe scores needs at least 1 safe requests"):
        Switch.fit(engine(), without, wanted, complied=two_of_three)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibrate": "source"}, "calibrate must be one of 'pooled', 'sources'; got 'source'"),
        ({"calibrate": "sources", "rule": "product"}, "which rule 'product' does not use"),
        ({"calibrate": "sources", "stages": "direct"}, "which stages 'direct' does not use"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings(**change)


def test_steps_are_read_at_ten_blocks_of_the_upper_two_thirds_and_never_at_the_last() -> None:
    plain = FitSettings()
    assert FitPlan(3, plain).stage1_spec((1, 2)) == {"kind": "steps", "blocks": (2,)}
    assert read_blocks("steps", FitPlan(30, plain)) == (11, 13, 15, 17, 19, 21, 23, 25, 27, 29)
    assert read_blocks("steps", FitPlan(3, plain)) == (2,)
    assert read_blocks("steps", FitPlan(2, plain)) == (1,)
    assert read_blocks("steps", FitPlan(80, plain))[-1] == 79
    assert read_blocks("steps", FitPlan(4, replace(plain, layers=(0, -2, 1, -1)))) == (1, 3)
    assert {ReadPoint(1), ReadPoint(2)} <= set(FitPlan(3, plain).points)
    halves = FitPlan(30, FitSettings(readers=("outputs",))).points
    assert {(p.layer, p.part) for p in halves if p.part} == {
        (block, part)
        for block in read_blocks("steps", FitPlan(30, plain))
        for part in ("attn", "mlp")
    }
    with pytest.raises(SettingError, match="a model of two blocks or more; this one has 1"):
        _ = FitPlan(1, plain).points
    with pytest.raises(SettingError, match=r"needs a layer in 1\.\.3; got \(-1,\)"):
        _ = FitPlan(4, replace(plain, layers=(-1,))).points
