"""The reader of kinds of harm, fitted: on made states of which the kinds are known, and the whole
way through a fit, a bundle and an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ActivationError, ArtifactError, SettingError
from safeswitch.core.harms import OTHER
from safeswitch.core.types import Example, Message, ReadPoint
from safeswitch.fitting.harms import FEWEST, fit_harms
from safeswitch.fitting.observe import ReadPrompts
from safeswitch.fitting.plan import FitPlan
from safeswitch.probers.harms import HarmReader
from safeswitch.switch.card import model_card
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, requests, settings, two_of_three

LAYERS, D = (1, 2), 6
AXES = {"violence": 0, "cyber": 1, "hate": 2}


def row(i: int, kind: str, **more: Any) -> Example:
    label = "unsafe" if kind else "safe"
    return Example(f"r{i}", (Message("user", f"ask {i}"),), label, category=kind, **more)  # type: ignore[arg-type]


def observed(kinds: list[str], seed: int, **meta: str) -> ReadPrompts:
    """Noise, on which each kind stands out along an axis of its own."""
    draw = torch.Generator().manual_seed(seed)
    states = {ReadPoint(layer): torch.randn(len(kinds), D, generator=draw) for layer in LAYERS}
    for i, kind in enumerate(kinds):
        for state in states.values():
            if kind in AXES:
                state[i, AXES[kind]] += 4.0
            if kind:
                state[i, 5] += 3.0
    examples = tuple(row(i, kind, meta=meta) for i, kind in enumerate(kinds))
    return ReadPrompts(examples, Activations(states))


def fitted(kinds: list[str], held: list[str]) -> tuple[HarmReader | None, Any]:
    parts = observed(kinds, 0), [observed(held, 1)]
    return fit_harms(FitPlan(3, settings()), LAYERS, *parts)


MANY = ["violence", "cyber", "", "", "", "hate"] * 20


def chances(reader: HarmReader, found: ReadPrompts) -> Tensor:
    return reader.probabilities(found.activations)


def test_each_request_is_of_the_kind_that_its_states_show() -> None:
    reader, notes = fitted(MANY, MANY)
    assert reader is not None
    assert reader.names == ("violence", "cyber", "hate")
    assert set(reader.points) == {ReadPoint(layer) for layer in LAYERS}
    new = observed(MANY, 2)
    seen = reader.read(new.activations)
    right = [s.category == kind for s, kind in zip(seen, MANY, strict=True) if kind]
    assert sum(right) / len(right) > 0.95
    assert all(entry["auroc"] > 0.95 for entry in notes["kinds"].values())


def worded(kinds: list[str], seed: int) -> ReadPrompts:
    """Noise alone; each kind stands in the text, between words that say nothing."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, len(kinds), D, generator=draw)
    texts = []
    for i, kind in enumerate(kinds):
        texts.append(f"please {kind or 'paint'} the {['red', 'blue'][i % 2]} thing {i}")
    states = dict(zip(map(ReadPoint, LAYERS), noise, strict=True))
    examples = tuple(row(i, kind) for i, kind in enumerate(kinds))
    return ReadPrompts(examples, Activations(states, texts=tuple(texts)))


def test_words_tell_kinds_that_states_do_not_and_count_for_nothing_where_there_are_none() -> None:
    plan = FitPlan(3, settings())
    reader = fit_harms(plan, LAYERS, worded(MANY, 0), [worded(MANY, 1)]).reader
    assert reader is not None
    assert reader.reads_text
    seen = reader.read(worded(MANY, 2).activations)
    assert [s.category for s, kind in zip(seen, MANY, strict=True) if kind] == [
        k for k in MANY if k
    ]
    silent = fit_harms(plan, LAYERS, observed(MANY, 0), [observed(MANY, 1)]).reader
    assert silent is not None
    assert not silent.reads_text
    with pytest.raises(ActivationError, match="one text a request; got 0 for 120"):
        reader.logits(observed(MANY, 2).activations)


@pytest.mark.parametrize("parts", [worded, observed], ids=["words", "states"])
def test_a_reader_survives_being_stored_with_words_and_without(parts: Any) -> None:
    found = fit_harms(FitPlan(3, settings()), LAYERS, parts(MANY, 0), [parts(MANY, 1)]).reader
    assert found is not None
    config, tensors = found.state()
    assert ("words" in tensors) == (parts is worded)
    again = HarmReader.from_state(config, tensors)
    new = parts(MANY, 2).activations
    torch.testing.assert_close(again.probabilities(new), found.probabilities(new))
    bent = {**tensors, "words": torch.zeros(2, 8)}
    with pytest.raises(ArtifactError, match="words"):
        HarmReader.from_state(config, bent)


def test_probabilities_are_calibrated_as_often_as_they_say() -> None:
    reader, _ = fitted(MANY * 3, MANY * 3)
    assert reader is not None
    new = observed(MANY * 5, 3)
    told = chances(reader, new)[:, 0]
    truth = torch.tensor([float(kind == "violence") for kind in MANY * 5])
    assert abs(float(told.mean() - truth.mean())) < 0.03
    sure = told > 0.5
    assert abs(float(told[sure].mean() - truth[sure].mean())) < 0.1


def test_kinds_with_too_little_data_say_so_and_are_read_as_other() -> None:
    rare = ["privacy", "drugs"] * 5
    reader, notes = fitted(MANY + rare, MANY + rare)
    assert reader is not None
    assert reader.names == ("violence", "cyber", "hate", OTHER)
    assert notes["in other"] == {"drugs": [5, 5], "privacy": [5, 5]}
    few = fitted(["violence", ""] * (FEWEST - 1), MANY)
    assert few[0] is None
    assert "violence 7" in few[1]["left out"]
    assert fitted(["", ""], MANY)[1]["left out"].endswith("known category")


def test_a_category_of_no_table_is_other_and_mild_ones_are_told_apart() -> None:
    odd = ["a category of somebody's own"] * 10
    reader, _ = fitted(MANY + odd, MANY + odd)
    assert reader is not None
    assert reader.names[-1] == OTHER
    mild, harsh = observed(["cyber"] * 30, 4, severity="careful"), observed(["violence"] * 30, 5)
    kinds = ["cyber"] * 30 + ["violence"] * 30
    both = ReadPrompts(
        mild.examples + harsh.examples,
        Activations.concatenate([mild.activations, harsh.activations]),
    )
    found = fit_harms(FitPlan(3, settings()), LAYERS, both, [both]).reader
    assert found is not None
    severities = [seen.severity for seen in found.read(both.activations)]
    expected = ["careful" if kind == "cyber" else "refuse" for kind in kinds]
    assert sum(a == b for a, b in zip(severities, expected, strict=True)) > 55


def named() -> list[Example]:
    """Requests whose third word says what kind they are of."""
    kinds = {"river": "violence", "stone": "violence", "cloud": "cyber", "apple": "cyber"}
    made = []
    for example in requests(160):
        kind = kinds.get(example.prompt.split()[1], "hate")
        made.append(replace(example, category=kind if example.unsafe else ""))
    return made


@pytest.fixture(scope="module")
def switch() -> Switch:
    return Switch.fit(engine(), named(), settings(), complied=two_of_three)


def test_the_kind_stands_in_decisions_of_an_engine_and_never_moves_them(switch: Switch) -> None:
    assert switch.gate.harms is not None
    blind = replace(switch, gate=replace(switch.gate, harms=None))
    options = {"max_new_tokens": 4, "do_sample": False}
    told = engine().generate(named()[:40], switch, **options)
    plain = engine().generate(named()[:40], blind, **options)
    fired = [reply.decision for reply in told if reply.decision.fired]
    assert fired
    for one, other in zip(told, plain, strict=True):
        assert (one.text, one.decision.scores) == (other.text, other.decision.scores)
        assert one.decision.fired == other.decision.fired
        assert other.decision.severity == other.decision.category == ""
    assert all(d.category in switch.gate.harms.names for d in fired)
    assert all(set(d.categories) == set(switch.gate.harms.names) for d in fired)


def test_a_bundle_keeps_the_reader_and_one_without_it_loads(switch: Switch, tmp_path: Path) -> None:
    switch.save_pretrained(tmp_path / "switch")
    again = Switch.from_pretrained(tmp_path / "switch")
    assert again.fingerprint == switch.fingerprint
    assert again.gate.harms is not None
    assert switch.gate.harms is not None
    assert torch.equal(again.gate.harms.weight, switch.gate.harms.weight)
    card = model_card(switch)
    assert "## Kinds of harm" in card
    assert "| violence |" in card
    blind = replace(switch, gate=replace(switch.gate, harms=None))
    blind.save_pretrained(tmp_path / "blind")
    assert Switch.from_pretrained(tmp_path / "blind").gate.harms is None
    assert blind.fingerprint != switch.fingerprint


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"names": ["magic"], "points": ["1@prompt_end"]}, "names must be one of"),
        ({"names": ["hate", "hate"], "points": ["1@prompt_end"]}, "different kinds"),
        ({"names": ["hate"], "points": ["1@pilot:2"]}, "prompt_end"),
        ({"names": ["hate"], "points": ["1@prompt_end", "2@prompt_end"]}, "P = 2"),
        ({"names": ["hate"], "points": []}, "one or more points"),
        ({"names": ["hate"]}, "'points' is missing"),
        ({"names": ["hate"], "points": ["1@prompt_end"], "colour": 1}, "unknown field 'colour'"),
    ],
)
def test_a_reader_that_does_not_hold_together_is_refused(config: Any, why: str) -> None:
    tensors = {"weight": torch.zeros(2, 1, D), "bias": torch.zeros(2)}
    if len(config.get("names", [])) == 2:
        tensors = {"weight": torch.zeros(3, 1, D), "bias": torch.zeros(3)}
    with pytest.raises((ArtifactError, SettingError), match=why):
        HarmReader.from_state(config, tensors)


def test_a_bundle_whose_reader_does_not_fit_its_model_is_refused(
    switch: Switch, tmp_path: Path
) -> None:
    wide = HarmReader(("hate",), (ReadPoint(1),), torch.zeros(2, 1, 99), torch.zeros(2))
    high = HarmReader(("hate",), (ReadPoint(9),), torch.zeros(2, 1, 32), torch.zeros(2))
    for reader, why in ((wide, "99 wide"), (high, "layer 9 does not exist")):
        made = replace(switch, gate=replace(switch.gate, harms=reader))
        made.save_pretrained(tmp_path / "odd")
        with pytest.raises(ArtifactError, match=f"gate.harms: .*{why}"):
            Switch.from_pretrained(tmp_path / "odd")
