"""States and replies for fitting out of a vLLM engine, against the transformers engine's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.core.errors import SettingError
from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.engines.vllm.recorder import StateRecorder
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.fitting.settings import FitSettings
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import needs_vllm, reference, saved, vllm_options
from tests.switch.made import requests

PILOTS = (PROMPT_END, Position("pilot", 1), Position("pilot", 3))
POINTS = tuple(ReadPoint(layer, position) for layer in (2, 3) for position in PILOTS)
ADDED = tuple(
    ReadPoint.parse(text)
    for text in (
        "1.attn@prompt_end",
        "3.mlp@prompt_end",
        "2.attn@pilot:3",
        "2.mlp@pilot:3",
        "2@prompt_end",
        "3@prompt_end",
    )
)
"""What halves of blocks add, beside states of the same blocks."""


def test_the_recorder_keeps_the_last_reading_of_a_count_and_an_ended_replys_last_state() -> None:
    recorder = StateRecorder(POINTS)
    states = {layer: torch.arange(4.0).reshape(2, 2) + layer for layer in (2, 3)}
    recorder.step([(0, "a", 0, False), (1, "b", 0, False)], lambda point: -states[point.layer])
    recorder.step([(0, "a", 0, False), (1, "b", 1, True)], lambda point: states[point.layer])
    kept = recorder.take(["a", "b", "absent"])
    assert set(kept) == {"a", "b"}
    assert set(kept["a"]) == {"2@prompt_end", "3@prompt_end"}
    assert kept["a"]["2@prompt_end"] == torch.tensor([2.0, 3.0]).numpy().tobytes()
    assert (
        kept["b"]["3@pilot:1"]
        == kept["b"]["3@pilot:3"]
        == torch.tensor([5.0, 6.0]).numpy().tobytes()
    )
    assert kept["b"]["3@prompt_end"] == torch.tensor([-5.0, -6.0]).numpy().tobytes()
    assert recorder.take(["a", "b"]) == {}


@pytest.fixture(scope="module")
def collector() -> Iterator[Any]:
    from safeswitch.engines.vllm.collect import VLLMCollector

    layers = range(1, reference("llama").lm.num_layers + 1)
    points = {
        *POINTS,
        *ADDED,
        *(ReadPoint(layer, p) for layer in layers for p in (PROMPT_END, Position("pilot", 3))),
    }
    with VLLMCollector(
        reference("llama").lm, saved("llama"), sorted(points, key=str), **vllm_options()
    ) as made:
        yield made


@needs_vllm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("new", [0, 1, 2, 3, 8])
def test_replies_and_states_are_those_of_the_transformers_engine(collector: Any, new: int) -> None:
    rows = requests(40)
    points = [p for p in POINTS if new or p.position == PROMPT_END]
    replies, activations = collector.collect(rows, points, max_new_tokens=new)
    wanted, reference_acts = reference("llama").collect(rows, points, max_new_tokens=new)
    assert [r.token_ids for r in replies] == [r.token_ids for r in wanted]
    assert activations.texts == reference_acts.texts
    for point in points:
        torch.testing.assert_close(
            activations.at(point), reference_acts.at(point), atol=1e-4, rtol=1e-4
        )


@needs_vllm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_blocks_add_is_recorded_as_by_the_transformers_engine(collector: Any) -> None:
    rows = requests(40)
    _, activations = collector.collect(rows, ADDED, max_new_tokens=4)
    _, wanted = reference("llama").collect(rows, ADDED, max_new_tokens=4)
    for point in ADDED:
        torch.testing.assert_close(activations.at(point), wanted.at(point), rtol=1e-4, atol=1e-4)


@needs_vllm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_switch_fitted_on_vllm_is_the_one_fitted_on_transformers(
    collector: Any, tmp_path: Path
) -> None:
    head = HeadSettings(ranks=(1,), epochs=2)
    settings = FitSettings(
        budget=0.2,
        readers=("layers", "text"),
        max_new_tokens=8,
        pilot=3,
        stages="stage1",
        head=head,
    )
    data = requests(80)
    one = Switch.fit(collector, data, settings, complied=lambda e, r: e.unsafe and "a" in r)
    two = Switch.fit(
        reference("llama"), data, settings, complied=lambda e, r: e.unsafe and "a" in r
    )
    assert one.gate.thresholds() == pytest.approx(two.gate.thresholds(), abs=1e-3)
    assert one.record["metrics"].keys() == two.record["metrics"].keys()
    one.save_pretrained(tmp_path)
    assert Switch.from_pretrained(tmp_path).base == two.base


@needs_vllm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_vllm_cannot_read_is_named(collector: Any) -> None:
    from safeswitch.engines.vllm.collect import VLLMCollector

    window = ReadPoint(2, Position("window", 4))
    with pytest.raises(SettingError, match="window"):
        VLLMCollector(reference("llama").lm, saved("llama"), [window])
    with pytest.raises(SettingError, match="does not follow thinking"):
        VLLMCollector(reference("llama").lm, saved("llama"), [ReadPoint(2, Position("answer", 1))])
    with pytest.raises(SettingError, match="9@prompt_end"):
        collector.collect(requests(2), [ReadPoint(9, PROMPT_END)], max_new_tokens=1)
