"""What the halves of a block add, read while the engine replies: the same as recorded, and no cost
where not asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.core.errors import ArtifactError, ModelError
from safeswitch.core.types import Position, ReadPoint
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.added import OutputsProber
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.activations.test_outputs import by_hand
from tests.engines.slow import Projection, prompt_point, random_head
from tests.engines.test_exactness import PROMPTS
from tests.switch.made import engine as made_engine
from tests.switch.made import requests, settings, two_of_three
from tests.tiny import tiny_lm

NAMES = ("llama", "qwen2", "gemma2", "gemma3_text", "olmo2", "mixtral", "gpt_neox")


def fitted(lm: LanguageModel) -> OutputsProber:
    """On noise, since what it has learnt does not matter here."""
    prober = OutputsProber(blocks=(1, lm.num_layers))
    draw = torch.Generator().manual_seed(4)
    prober.weight_ = 0.05 * torch.randn(len(prober.points), lm.hidden_size, generator=draw)
    prober.bias_ = torch.zeros(1)
    return prober


@pytest.mark.parametrize("name", NAMES)
def test_scores_while_replying_equal_those_of_recorded_states(name: str) -> None:
    lm = tiny_lm(name)
    prober = fitted(lm)
    sequences, lengths, texts = prompt_sequences(lm, PROMPTS)
    assert len(set(lengths)) > 3
    recorded = prober.score(record(lm, sequences, lengths, prober.points, texts=texts))
    gate = Gate(stage1=Stage(prober, float(recorded.median())))
    switch = Switch(gate, random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=4, do_sample=False)
    scores = [reply.decision.scores["stage1"] for reply in replies]
    assert scores == pytest.approx(recorded.tolist(), abs=1e-5)
    assert len({round(score, 3) for score in scores}) > 3


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_stage_2_and_the_watch_read_outputs_of_the_running_reply(name: str) -> None:
    lm = tiny_lm(name)
    point = ReadPoint(2, Position("pilot", 2), "mlp")
    second, watch = (Projection(point, lm.hidden_size, seed=seed) for seed in (1, 2))
    gate = Gate(stage2=Stage(second, 1.0), watch=Stage(watch, 1.0), watch_every=3, watch_until=3)
    replies = TransformersEngine(lm).generate(
        PROMPTS, Switch(gate, NoAction()), max_new_tokens=5, do_sample=False, eos_token_id=-1
    )
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        alone = by_hand(lm, name, row + list(reply.token_ids[:3]))[2, "mlp"]
        for stage, prober, fed in (("stage2", second, 2), ("watch", watch, 3)):
            expected = float(torch.sigmoid(alone[len(row) - 1 + fed] @ prober.direction))
            assert reply.decision.scores[stage] == pytest.approx(expected, abs=1e-4)


def test_a_gate_that_reads_layers_alone_puts_no_hook_on_a_half_and_never_looks_for_one() -> None:
    lm = tiny_lm("llama")
    never = Projection(prompt_point(lm, 2), lm.hidden_size)
    switch = Switch(Gate(stage1=Stage(never, 1.0)), NoAction())
    assert lm.traits.pads_left  # found now, since finding it runs the model
    seen: list[int] = []
    lm.parts.head.register_forward_hook(
        lambda *_: seen.append(
            sum(len(m._forward_hooks) for b in lm.parts.blocks for m in b.children())
        )
    )
    TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=3, do_sample=False)
    assert set(seen) == {0}
    assert "outputs" not in lm.__dict__


def test_once_every_row_is_decided_no_output_is_read_any_more() -> None:
    lm = tiny_lm("llama")
    switch = Switch(Gate(stage1=Stage(fitted(lm), 1.0)), NoAction())
    half = lm.outputs.modules[fitted(lm).points[0].site]  # type: ignore[index]
    assert lm.traits.pads_left
    seen: list[int] = []
    lm.parts.head.register_forward_pre_hook(lambda *_: seen.append(len(half._forward_hooks)))
    TransformersEngine(lm).generate(PROMPTS[:1], switch, max_new_tokens=3, do_sample=False)
    assert seen == [1, 0, 0]


def test_a_switch_that_reads_outputs_of_a_model_without_is_refused_before_it_runs() -> None:
    lm = tiny_lm("bloom")
    switch = Switch(Gate(stage1=Stage(fitted(lm), 0.5)), NoAction())
    with pytest.raises(ModelError, match=r"output 1\.attn cannot be read"):
        TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=1)
    with pytest.raises(ModelError, match=r"output 2\.attn cannot be read"):
        Switch.fit(TransformersEngine(lm), requests(), settings(readers=("outputs",), layers=(2,)))


def test_a_fitted_reader_of_outputs_survives_saving_and_loading(tmp_path: Path) -> None:
    chosen = settings(readers=("outputs", "text"), stages="stage1", layers=(1, 2))
    switch = Switch.fit(made_engine(), requests(), chosen, complied=two_of_three)
    assert switch.gate.stage1 is not None
    assert {str(p) for p in switch.gate.points} == {
        f"{b}.{h}@prompt_end" for b in (1, 2) for h in ("attn", "mlp")
    }
    switch.save_pretrained(tmp_path)
    again = Switch.from_pretrained(tmp_path)
    assert again.fingerprint == switch.fingerprint
    rows = requests()[:9]
    scores = [
        [reply.decision.scores for reply in made_engine().generate(rows, made, max_new_tokens=1)]
        for made in (switch, again)
    ]
    assert scores[0] == scores[1]


def test_a_bundle_that_reads_a_block_beyond_the_model_is_refused(tmp_path: Path) -> None:
    chosen = settings(readers=("outputs",), stages="stage1", layers=(1,))
    switch = Switch.fit(made_engine(), requests(), chosen, complied=two_of_three)
    assert switch.gate.stage1 is not None
    prober = switch.gate.stage1.prober
    assert isinstance(prober, OutputsProber)
    prober.blocks = [9]
    beyond = replace(switch, gate=replace(switch.gate, stage1=Stage(prober, 0.5)))
    beyond.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"layer 9 does not exist; the base model has 0\.\.3"):
        Switch.from_pretrained(tmp_path)
