"""Landscape: the formulas by hand, weights that come back bit for bit, and a survey whose middle is
the unmoved model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from safeswitch.analyses.landscape.perturb import (
    direction,
    moved,
    moved_head,
    moved_model,
    moved_probers,
)
from safeswitch.analyses.landscape.survey import Plan, Surveyor, survey, visage
from safeswitch.bench.judges.base import JUDGES
from safeswitch.bench.judges.rules import RulesJudge
from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Example, Message
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import bench, switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.actuators.base import LowRankHead, NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch
from tests.tiny import tiny_lm


def test_a_direction_has_the_size_of_the_weights_by_tensor_or_by_row() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    by_layer, by_row = direction("w", weight, 0), direction("w", weight, 0, "filter")
    assert float(by_layer.norm()) == pytest.approx(13.0)
    assert by_row.norm(dim=1).tolist() == pytest.approx([5.0, 12.0])
    noise = by_layer / by_layer.norm()
    assert torch.allclose(by_row[0] / 5, noise[0] / noise[0].norm())
    assert torch.equal(direction("w", weight, 0), by_layer)
    assert not torch.allclose(direction("w", weight, 1), by_layer)
    assert not torch.allclose(direction("v", weight, 0), by_layer)


def test_norms_scaling_and_whole_numbers_stay() -> None:
    for name, weight in (
        ("input_layernorm.weight", torch.ones(3)),
        ("0.mean", torch.ones(3)),
        ("smooth", torch.tensor([4])),
    ):
        assert torch.equal(moved(name, weight, [(0, 0.5)]), weight)
    with pytest.raises(SettingError, match="normalise must be one of 'layer', 'filter'"):
        direction("w", torch.ones(2), 0, "row")  # type: ignore[arg-type]


def test_moves_add_up_and_are_of_the_weights_own_kind() -> None:
    weight = torch.randn(4, 3).to(torch.bfloat16)
    expected = weight.float() + 0.5 * direction("w", weight, 1) - 0.25 * direction("w", weight, 2)
    found = moved("w", weight, [(1, 0.5), (2, -0.25)])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_weights_come_back_bit_for_bit_after_success_and_after_a_failure(name: str) -> None:
    lm = tiny_lm(name)
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    ids = torch.tensor([[1, 20, 30]])
    with torch.no_grad():
        plain = lm.model(ids).logits
        with moved_model(lm, [(0, 0.5)]):
            inside = {n: p.clone() for n, p in lm.model.named_parameters()}
            assert not torch.allclose(lm.model(ids).logits, plain, atol=1e-3)
        assert torch.equal(lm.model(ids).logits, plain)
    for n, weight in before.items():
        assert torch.equal(inside[n], moved(n, weight, [(0, 0.5)]))
        assert torch.equal(inside[n], weight) == ("norm" in n)
    with pytest.raises(RuntimeError, match="stop"), moved_model(lm, [(0, 0.5)]):
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


def test_weights_come_back_after_a_failure_half_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    from safeswitch.analyses.landscape import perturb

    calls = iter(range(100))

    def failing(name: str, weight: torch.Tensor, *rest: object) -> torch.Tensor:
        if next(calls) == 5:
            raise MemoryError
        return weight + 1

    monkeypatch.setattr(perturb, "moved", failing)
    with pytest.raises(MemoryError), moved_model(lm, [(0, 0.5)]):
        pytest.fail("never entered")
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


def test_heads_and_probers_are_moved_in_a_copy() -> None:
    switch = Switch.from_pretrained(switch_path())
    assert isinstance(switch.actuator, LowRankHead)
    assert (
        moved_head(switch, [(0, 0.0)]).fingerprint
        == switch.fingerprint
        == moved_probers(switch, [(0, 0.0)]).fingerprint
    )
    head = moved_head(switch, [(0, 0.5)]).actuator
    assert isinstance(head, LowRankHead)
    assert torch.equal(head.up, moved("head.up", switch.actuator.up, [(0, 0.5)]))
    assert float((head.down - switch.actuator.down).norm()) == pytest.approx(
        0.5 * float(switch.actuator.down.norm()), rel=1e-4
    )
    probers = moved_probers(switch, [(0, 0.5)]).gate
    assert probers.thresholds() == switch.gate.thresholds()
    assert probers.stage1 is not None
    assert switch.gate.stage1 is not None
    old, new = switch.gate.stage1.prober.state()[1], probers.stage1.prober.state()[1]
    assert {n for n in old if torch.equal(old[n], new[n])} == {
        n for n in old if n.endswith(("mean", "scale"))
    }
    with pytest.raises(SettingError, match="no tensors"):
        moved_head(Switch(Gate(), NoAction()), [])
    with pytest.raises(SettingError, match="no probers"):
        moved_probers(Switch(Gate(), NoAction()), [])


def test_visage_is_the_mean_over_the_basin_around_zero() -> None:
    at = [-0.4, -0.2, 0.0, 0.2, 0.4]
    assert visage(at, [0, 20, 10, 30, 100]) == pytest.approx((100 + 80 + 90 + 70) / 4)
    assert visage(at, [0, 100, 10, 30, 40]) == pytest.approx((90 + 70 + 60) / 3)
    assert visage(at, [0, 0, 100, 0, 0]) == 0.0
    assert visage(at, [50] * 5) == pytest.approx(50)


def test_a_survey_is_the_unmoved_run_in_its_middle_and_lets_the_gate_speak(tmp_path: Path) -> None:
    engine, switch = (
        TransformersEngine.load(weights_path(), batch_size=64),
        Switch.from_pretrained(switch_path()),
    )
    examples = [*load_suite("jailbroken_a", 6), *load_suite("lookalike_a", 2)]
    judge = bench.NanoJudge()
    plan = Plan(
        reach=0.6, points=3, directions=1, map_points=3, max_new_tokens=12, parts=("model", "head")
    )
    steps: list[int] = []
    told = survey(engine, switch, examples, judge, tmp_path, plan, step=lambda: steps.append(1))
    assert json.loads((tmp_path / "landscape.json").read_text()) == json.loads(json.dumps(told))
    assert len(steps) == Surveyor(engine, switch, examples, judge, plan).places() == 3 * (3 + 9)
    for gated in (False, True):
        replies = engine.generate(
            examples, switch if gated else None, max_new_tokens=12, do_sample=False
        )
        share = sum(bench.judge.refused(r.text) for r in replies[:6]) / 6
        curves = [c for c in told["curves"] if c["gate"] == gated]
        assert [c["refused"][1] for c in curves] == [share] * len(curves)
        assert [m["refused"][1][1] for m in told["maps"] if m["gate"] == gated] == [share] * len(
            curves
        )
    bare, guarded = (
        next(c for c in told["curves"] if c["part"] == "model" and c["gate"] == g)
        for g in (False, True)
    )
    assert guarded["refused"][1] > bare["refused"][1]
    assert guarded["visage"] == visage(
        plan.distances(3), [100 * (1 - r) for r in guarded["refused"]]
    )
    one = next(c for c in told["curves"] if c["part"] == "model" and not c["gate"])
    row = next(m for m in told["maps"] if m["part"] == "model" and not m["gate"])
    assert row["complied"][1] == one["complied"]


def test_what_cannot_be_surveyed_is_refused() -> None:
    assert JUDGES["rules"] is RulesJudge
    with pytest.raises(SettingError, match="part must be one of"):
        Plan(parts=("body",))
    with pytest.raises(SettingError, match="points must be odd"):
        Plan(points=4)
    engine = TransformersEngine(tiny_lm())
    safe = [Example("a", (Message("user", "Hi"),), "safe")]
    with pytest.raises(DataError, match="no unsafe request"):
        Surveyor(engine, Switch(Gate(), NoAction()), safe, RulesJudge(), Plan())
