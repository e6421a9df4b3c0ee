"""vLLM engines that follow the switch: the same replies and decisions as transformers', and one
engine at a time."""

from __future__ import annotations

import pytest

from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.screen import screen
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch
from tests.engines.vllm_made import needs_vllm, vllm_options

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_each_switch_gets_an_engine_that_answers_as_transformers_does() -> None:
    from safeswitch.engines.vllm.switched import SwitchedVLLM

    asked = [*load_suite("plain_unsafe", 3), *load_suite("lookalike", 3)]
    reference = TransformersEngine.load(weights_path())
    own = Switch.from_pretrained(switch_path())
    options = vllm_options(max_model_len=512)
    del options["dtype"]  # the weights' own, which vLLM by itself would round
    with SwitchedVLLM(weights_path(), model_id="nano", engine_args=options) as engine:
        assert engine.facts.fingerprint == reference.facts.fingerprint
        assert engine.facts.chat_template == reference.facts.chat_template
        assert (engine.facts.context_length, engine.facts.dtype) == (512, "torch.float32")
        for switch in (Switch(Gate(), NoAction()), own):
            replies = engine.generate(asked, switch, max_new_tokens=16, do_sample=False)
            wanted = reference.generate(asked, switch, max_new_tokens=16, do_sample=False)
            assert [r.text for r in replies] == [r.text for r in wanted]
            assert [r.decision.fired for r in replies] == [r.decision.fired for r in wanted]
        first = engine._engine
        assert first is not None
        for one, other in zip(first.screen(asked), screen(reference, asked, own), strict=True):
            assert one.scores == pytest.approx(other.scores, abs=1e-4)
            assert (one.fired, one.thresholds) == (other.fired, other.thresholds)
        engine.generate(asked[:1], own, max_new_tokens=2)
        assert engine._engine is first
    assert engine._engine is None
