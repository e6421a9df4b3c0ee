"""Stage 1 on means over the prompt's last tokens: the same reading in every batch, kept in a bundle,
and refused where it cannot be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.core.types import Position, ReadPoint
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.added import MeansProber
from safeswitch.probers.window import WindowProber
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.capability import vllm_refusal
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.fitting.test_harms import named
from tests.switch.made import engine, settings, two_of_three
from tests.tiny import tiny_lm

PROMPTS = ["a", "a long river stone cloud and a b c d", "ZAP it", "b c d"]
TOKENS = 5


def fitted(lm: LanguageModel) -> MeansProber:
    """A reader of two blocks, fitted on made-up labels."""
    prober = MeansProber(blocks=(1, 2), tokens=TOKENS)
    asked = [f"{'bad' if i % 2 else 'good'} day {i}" for i in range(12)]
    sequences, lengths = prompt_sequences(lm, asked)[:2]
    return prober.fit(record(lm, sequences, lengths, prober.points), torch.arange(12) % 2 == 1)


def by_hand(lm: LanguageModel, row: list[int], prober: MeansProber) -> float:
    """The score from transformers' own hidden states of the prompt alone."""
    with torch.no_grad():
        hidden = lm.model(torch.tensor([row]), output_hidden_states=True).hidden_states
    logit = prober.bias_
    for point, weight in zip(prober.points, prober.weight_, strict=True):
        states: Tensor = hidden[point.layer][0]
        mean = point.position.kind == "mean"
        logit = logit + (states[-TOKENS:].mean(0) if mean else states[-1]) @ weight
    return float(torch.sigmoid(logit))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_decision_is_that_of_the_prompt_alone_in_every_batch(name: str, batch_size: int) -> None:
    lm = tiny_lm(name)
    prober = fitted(lm)
    switch = Switch(Gate(stage1=Stage(prober, 1.0)), NoAction())
    replies = TransformersEngine(lm, batch_size=batch_size).generate(
        PROMPTS, switch, max_new_tokens=3, do_sample=False
    )
    scores = [reply.decision.scores["stage1"] for reply in replies]
    expected = [by_hand(lm, row, prober) for row in lm.encode(PROMPTS)]
    assert scores == pytest.approx(expected, abs=1e-4)
    assert max(scores) - min(scores) > 1e-3


def test_a_fit_on_means_is_kept_by_its_bundle_with_kinds_that_are_read_there_too(
    tmp_path: Path,
) -> None:
    chosen = settings(readers=("means",), stages="stage1", layers=(1, 2))
    switch = Switch.fit(engine(), named(), chosen, complied=two_of_three)
    switch.save_pretrained(tmp_path)
    again = Switch.from_pretrained(tmp_path)
    mean = ReadPoint(2, Position("mean", 24))
    assert again.gate.harms is not None
    assert mean in again.gate.harms.points
    decisions = []
    for one in (switch, again):
        replies = engine().generate(named()[:40], one, max_new_tokens=1, do_sample=False)
        decisions.append([replace(reply.decision, latency_s=0.0) for reply in replies])
    assert decisions[0] == decisions[1]
    assert len({decision.category for decision in decisions[0] if decision.fired}) > 1


def test_vllm_takes_means_and_says_why_it_takes_no_window() -> None:
    lm = tiny_lm()
    means = Switch(Gate(stage1=Stage(fitted(lm), 0.5)), NoAction())
    assert vllm_refusal(means) is None
    window = WindowProber(ReadPoint(2, Position("window", 4)))
    told = vllm_refusal(Switch(Gate(stage1=Stage(window, 0.5)), NoAction())) or ""
    assert "one by one (2@window:4)" in told
    assert "--readers steps or means" in told
