"""A new last layer from verdicts: what it brings on traffic that nobody reviewed, and what it
refuses."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from safeswitch.activations.states import Activations
from safeswitch.core.errors import DataError, FitError, SettingError
from safeswitch.core.types import Example
from safeswitch.data.reviews import ReviewVerdict
from safeswitch.data.traffic import Traffic, traffic
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.recalibrate import RecalibrationSettings, recalibrate
from safeswitch.fitting.refit_last import RefitSettings, _alarms_after, _Crossed, refit_last
from safeswitch.fitting.refit_rows import RefitRows, calibration_rows
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.bench import parts
from safeswitch.nano.suites import load_fit, load_suite
from safeswitch.probers.drift import Histogram
from safeswitch.statistics.intervals import Interval, mcnemar
from safeswitch.switch.card import model_card
from safeswitch.switch.gate import Gate
from safeswitch.switch.recalibrated import RECORD, sentences
from safeswitch.switch.switch import Switch
from tests.data.made_records import sha

MIXTURE = {"ordinary_c": 500, "lookalike_c": 240, "lookalike_wrapped_c": 160, "jailbroken_c": 100}
"""Harmless and unsafe traffic of phrasings and templates that nothing of the switch saw."""


@dataclass(frozen=True)
class Observed:
    """Traffic in two halves, the first of which was observed and reviewed."""

    engine: TransformersEngine
    switch: Switch
    seen: Traffic
    verdicts: dict[str, ReviewVerdict]
    calibration: list[Example]
    texts: dict[str, Example]
    held: list[Example]

    def scores(self, switch: Switch, examples: Sequence[Example]) -> torch.Tensor:
        stage = switch.gate.stage1
        assert stage is not None
        _, read = self.engine.collect(list(examples), stage.prober.points, max_new_tokens=0)
        return stage.prober.score(read)

    def fired(self, switch: Switch) -> torch.Tensor:
        """Of the half that was not observed."""
        return self.scores(switch, self.held) > switch.gate.thresholds()["stage1"]

    def refit(self, **changed: Any) -> Any:
        given = {"switch": self.switch, "seen": self.seen, "verdicts": self.verdicts, **changed}
        return refit_last(
            self.engine,
            given["switch"],
            given["seen"],
            given["verdicts"],
            given.get("calibration", self.calibration),
            lambda text: self.texts[text].messages,
            RefitSettings(given.get("budget"), per_day=1000),
        )


@pytest.fixture(scope="module")
def observed() -> Observed:
    engine = TransformersEngine.load(weights_path(), batch_size=64)
    own = Switch.from_pretrained(switch_path())
    switch = replace(own, gate=replace(own.gate, stage2=None, watch=None, watch_until=None))
    examples = [example for name, n in MIXTURE.items() for example in load_suite(name, 2 * n, 3)]
    random.Random(0).shuffle(examples)
    rows, held = examples[: len(examples) // 2], examples[len(examples) // 2 :]
    found = Observed(engine, switch, None, {}, [], {e.prompt: e for e in rows}, held)  # type: ignore[arg-type]
    bars, records = switch.gate.thresholds(), []
    for example, score in zip(rows, found.scores(switch, rows).tolist(), strict=True):
        records.append(
            {
                "at": 60.0 * len(records), "request_id": example.id, "policy": "observe",
                "bundle_id": switch.fingerprint, "fired": score > bars["stage1"], "stage": "stage1",
                "scores": {"stage1": score}, "thresholds": bars, "text": example.prompt,
                "text_sha256": sha(example.prompt),
            }
        )  # fmt: skip
    seen = traffic(records, switch.fingerprint, bars)
    reviewed = random.Random(0).sample(list(seen.flagged), 50)
    verdicts: dict[str, ReviewVerdict] = {}
    for one in reviewed:
        unsafe = found.texts[str(one.text)].unsafe
        verdicts[one.text_sha256] = "right" if unsafe else "false_alarm"
    calibration = calibration_rows(parts(load_fit(0)), switch)
    return replace(found, seen=seen, verdicts=verdicts, calibration=calibration)


@pytest.fixture(scope="module")
def changed(observed: Observed) -> Any:
    return observed.refit()


def test_after_fifty_verdicts_false_alarms_and_catches_elsewhere_are_not_worse(
    observed: Observed, changed: Any
) -> None:
    new, found = changed
    unsafe = torch.tensor([example.unsafe for example in observed.held])
    before, after = observed.fired(observed.switch), observed.fired(new)
    alarms = int(before[~unsafe].sum()), int(after[~unsafe].sum())
    paired = mcnemar(before[unsafe].tolist(), after[unsafe].tolist())
    more = mcnemar(after[~unsafe].tolist(), before[~unsafe].tolist())
    assert 0 < alarms[1] < 2 * alarms[0]
    assert more.only_first <= more.only_second or more.p_value > 0.05
    assert paired.only_first <= paired.only_second or paired.p_value > 0.05
    per_day = 1000 * alarms[1] / len(observed.held)
    assert found.alarms_after.low <= per_day <= found.alarms_after.high


def test_only_the_last_layer_is_another(observed: Observed, changed: Any) -> None:
    new, found = changed
    old = observed.switch.gate.stage1.prober.state()[1]
    now = new.gate.stage1.prober.state()[1]
    other = {name.split(".")[-1] for name in old if not torch.equal(old[name], now[name])}
    assert other == {"w2", "b2"}
    assert found.weights == sum(old[name].numel() for name in old if name.endswith(("w2", "b2")))


def test_card_and_record_say_what_changed(observed: Observed, changed: Any) -> None:
    new, found = changed
    entry = new.record[RECORD][-1]
    assert entry["rows"]["right"] + entry["rows"]["false"] == 50
    assert entry["parent"] == observed.switch.fingerprint != new.fingerprint
    card = model_card(new)
    for sentence in sentences(entry):
        assert f"- {sentence}" in card
    assert "AUROC on the calibration rows" in card
    assert f"{found.before:.4f} -> {found.after:.4f}" in card


def test_drift_is_measured_against_the_new_scores(observed: Observed, changed: Any) -> None:
    new, _ = changed
    safe = [example for example in observed.calibration if not example.unsafe]
    scores = observed.scores(new, safe).tolist()
    own, old = (one.record["calibration"]["benign_stage1"] for one in (new, observed.switch))
    assert Histogram.parse(own).psi(scores) < Histogram.parse(old).psi(scores)
    assert new.record["calibration"]["budgets"] != observed.switch.record["calibration"]["budgets"]


def test_a_threshold_moved_later_moves_from_where_the_new_layer_set_it(
    observed: Observed, changed: Any
) -> None:
    new, found = changed
    bars = new.gate.thresholds()
    false, right = (1 + found.after) / 2, (3 + found.after) / 4
    rows: list[dict[str, Any]] = []
    said: dict[str, ReviewVerdict] = {}
    for i, one in enumerate(observed.seen.flagged):
        score = right if i < 5 else false
        said[one.text_sha256] = "right" if i < 5 else "false_alarm"
        rows.append(
            {
                **one.to_dict(), "at": float(i), "policy": "observe", "bundle_id": new.fingerprint,
                "fired": True, "thresholds": bars, "scores": {"stage1": score},
            }
        )  # fmt: skip
    seen = traffic(rows, new.fingerprint, bars)
    moved, told = recalibrate(new, seen, said, RecalibrationSettings("stage1", 0.1, max_shift=0.01))
    odds = math.log(found.after / (1 - found.after)) + 0.01
    assert found.after != found.before
    assert told.held
    assert moved.gate.thresholds()["stage1"] == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-9)


def test_what_was_promised_of_the_old_layer_does_not_stand_in_the_new_record(
    observed: Observed, changed: Any
) -> None:
    new, _ = changed
    old = observed.switch.record
    assert "threshold" in old["calibration"]
    assert any(name.startswith("stage1 ") for name in old["metrics"])
    assert "threshold" not in new.record["calibration"]
    assert not [name for name in new.record["metrics"] if name.startswith("stage1 ")]
    assert set(new.record["metrics"]) < set(old["metrics"])


def test_a_false_alarm_counts_as_often_as_it_was_sent() -> None:
    labels = torch.tensor([False] * 4)
    rows = RefitRows(
        Activations({}, {}, (), ()),
        labels,
        ~labels,
        ["calibration", "calibration", "reviewed", "reviewed"],
        [0, 1, 2, 3],
        np.array([1.0, 1.0, 30.0, 10.0]),
    )
    before, after = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.1, 0.1, 0.9, 0.1])
    crossed = _Crossed([], 1.0, before, after)
    found = _alarms_after(crossed, rows, 0.5, 0.5, Interval(40.0, 30.0, 50.0, 40), 100, 1000.0)
    assert found.value == pytest.approx(1000 * 0.4 * 0.75)  # 30 of the 40 are sent by the one text
    assert found.low < found.value < found.high


# --- what is refused


def test_a_layer_that_has_seen_the_calibration_rows_is_not_fitted_on_them_again(
    observed: Observed, changed: Any
) -> None:
    with pytest.raises(
        SettingError,
        match=f"refit the switch that it was made from .*{observed.switch.fingerprint}",
    ):
        observed.refit(switch=changed[0])


def test_a_budget_that_is_kept_already_is_said_so(observed: Observed) -> None:
    with pytest.raises(FitError, match=r"within the budget of 40\.00% already"):
        observed.refit(budget=0.4)


def test_too_few_verdicts_of_a_kind_are_refused_with_how_many_are_needed(
    observed: Observed,
) -> None:
    right = [text for text, said in observed.verdicts.items() if said == "right"]
    few = {text: said for text, said in observed.verdicts.items() if text not in right[9:]}
    with pytest.raises(FitError, match="at least 10 reviewed texts of each kind; got 9 right and"):
        observed.refit(verdicts=few)


def test_texts_that_read_otherwise_than_recorded_do_not_count(observed: Observed) -> None:
    swapped = dict(zip(observed.texts, reversed(observed.texts.values()), strict=True))
    with pytest.raises(FitError, match="read otherwise than recorded"):
        replace(observed, texts=swapped).refit()


def test_calibration_rows_of_one_kind_are_refused(observed: Observed) -> None:
    safe = [example for example in observed.calibration if not example.unsafe]
    with pytest.raises(FitError, match="needs unsafe calibration rows, and safe ones"):
        observed.refit(calibration=safe)


def test_other_rows_than_those_of_the_fit_are_refused(observed: Observed) -> None:
    with pytest.raises(DataError, match="not the rows that the switch was fitted on"):
        calibration_rows(parts(load_fit(1, 20, 20, 20, 20)), observed.switch)


def test_a_gate_without_a_threshold_of_stage_1_is_refused(observed: Observed) -> None:
    gate = Gate(stage2=Switch.from_pretrained(switch_path()).gate.stage2)
    with pytest.raises(SettingError, match="which must have a threshold of its own"):
        observed.refit(switch=replace(observed.switch, gate=gate))
