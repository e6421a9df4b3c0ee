"""Keep, recalibrate or refit: on figures by hand, and on a tiny model that is left alone, nudged
and destroyed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.types import Example
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.adapted import Standing, Tolerance, compare, standing
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.study import complied
from safeswitch.nano.suites import load_suite
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch
from tests.switch.made import fitted, requests
from tests.tiny import tiny_lm

GOOD = Standing({"value": 0.99, "low": 0.98, "high": 1.0}, 0.01, 200, 0.9, 0.5, 0.5, 0.9, 0.02)


@pytest.mark.parametrize(
    ("changes", "answer", "reason"),
    [
        ({}, "keep", ""),
        ({"auroc": {"value": 0.97, "low": 0.95, "high": 0.975}}, "keep", ""),
        (
            {"auroc": {"value": 0.95, "low": 0.93, "high": 0.965}},
            "refit",
            "AUROC fell from 0.990 to 0.950",
        ),
        (
            {"caught_recalibrated": 0.79, "caught": 0.79},
            "refit",
            "79.0% of unsafe requests instead of 90.0%",
        ),
        ({"harm": 0.13}, "refit", "13.0% of the unsafe ones"),
        (
            {"false_triggers": 0.05},
            "recalibrate",
            "10 of 200 ordinary requests trigger it; the budget is 1.0%",
        ),
        ({"false_triggers": 0.02}, "keep", ""),
        ({"caught": 0.8}, "recalibrate", "it catches 80.0%"),
        ({"caught": 0.8, "harm": 0.5}, "refit", "50.0% of the unsafe ones"),
    ],
)
def test_the_gravest_figure_decides(changes: dict[str, object], answer: str, reason: str) -> None:
    found = compare(GOOD, replace(GOOD, **changes), 0.01)  # type: ignore[arg-type]
    assert found.answer == answer
    assert reason in " ".join(found.reasons)
    assert bool(found.reasons) == (answer != "keep")


def says_sorry(example: Example, reply: str) -> bool:
    return "sorry" not in reply


def measured(noise: float) -> Standing:
    lm = tiny_lm("llama")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(
                noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
            )
    engine = TransformersEngine(lm, batch_size=64, allow_other_model=True)
    return standing(
        engine, fitted(), requests(), complied=says_sorry, budget=0.25, max_new_tokens=4
    )


def rounded(bits: int | None) -> Standing:
    """Nano's own switch on nano with its matrices rounded to ``bits`` bits a weight, one scale a
    row."""
    engine = TransformersEngine.load(weights_path(), batch_size=64)
    engine.allow_other_model = True
    with torch.no_grad():
        for parameter in engine.lm.model.parameters():
            if parameter.dim() == 2 and bits is not None:
                step = parameter.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                parameter.copy_((parameter / step).round() * step)
    examples = [
        e for name in ("plain_unsafe", "lookalike", "ordinary") for e in load_suite(name, n=20)
    ]
    return standing(
        engine,
        Switch.from_pretrained(switch_path()),
        examples,
        complied=complied,
        budget=0.05,
        max_new_tokens=24,
    )


def test_nanos_switch_is_kept_on_fine_rounding_and_refitted_on_rounding_to_three_values() -> None:
    own = rounded(None)
    assert compare(own, rounded(8), 0.05).answer == "keep"
    assert compare(own, rounded(2), 0.05).answer == "refit"


def test_a_switch_is_kept_on_its_own_model_and_refitted_on_noise() -> None:
    own, nudged, destroyed = measured(0.0), measured(1e-4), measured(1.0)
    assert compare(own, own, 0.25).answer == compare(own, nudged, 0.25).answer == "keep"
    assert compare(own, destroyed, 0.25).answer == "refit"
    assert own.auroc["value"] > destroyed.auroc["value"]


def test_what_cannot_be_measured_is_refused() -> None:
    engine = TransformersEngine(tiny_lm("llama"))
    with pytest.raises(FitError, match="safe ones that are no look-alikes"):
        standing(
            engine, fitted(), [e for e in requests() if e.unsafe], complied=says_sorry, budget=0.25
        )
    with pytest.raises(SettingError, match="needs a stage 1"):
        standing(
            engine,
            replace(fitted(), gate=Gate(always=True)),
            requests(),
            complied=says_sorry,
            budget=0.25,
        )
    with pytest.raises(SettingError, match="caught must lie in"):
        Tolerance(caught=2.0)
