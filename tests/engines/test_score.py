"""Log-likelihoods against a forward pass by hand, for the untouched model and for each kind of
actuator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from safeswitch.core.types import as_messages
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.score import log_likelihoods
from safeswitch.switch.actuators.base import FullHead, LowRankHead, NoAction, Steering, SystemPrompt
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, fitted, requests
from tests.tiny import tiny_lm

PAIRS = [
    ("tell me of clouds", "yes of course"),
    ("ask me", "no"),
    ("a much longer request than the others", "so it is"),
]


def by_hand(
    lm: Any, prompt: str, reply: str, head: Any = None, before: str = ""
) -> tuple[float, bool]:
    """One row alone, no padding, logits from the last hidden state and the head's own weights."""
    messages = as_messages(prompt)
    if before:
        messages = SystemPrompt(before).edit(messages)
    (start,) = lm.encode([messages])
    tail = lm.tokenizer(reply, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        states = lm.model(torch.tensor([start + tail]), output_hidden_states=True).hidden_states[
            -1
        ][0]
        logits = states @ lm.parts.head.weight.T
        if head is not None:
            logits = head(logits, states)
        told = logits.log_softmax(-1)
    each = [float(told[len(start) - 1 + i, token]) for i, token in enumerate(tail)]
    best = [int(told[len(start) - 1 + i].argmax()) == token for i, token in enumerate(tail)]
    return sum(each), all(best)


def always(actuator: Any) -> Switch:
    return Switch(Gate(always=True), actuator)


def test_the_untouched_models_likelihood_is_that_of_a_row_alone() -> None:
    lm = tiny_lm("llama")
    found = log_likelihoods(TransformersEngine(lm, batch_size=2), PAIRS)
    for (prompt, reply), one in zip(PAIRS, found, strict=True):
        expected, greedy = by_hand(lm, prompt, reply)
        assert (one.log_prob, one.greedy) == (pytest.approx(expected, abs=1e-4), greedy)


def test_the_likeliest_token_is_told_as_greedy_and_another_is_not() -> None:
    lm = tiny_lm("llama")
    texts = "abcdefghijklmnopqrstuvwxyz"
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts]
    found = log_likelihoods(TransformersEngine(lm), [("ask me", text) for text in texts])
    logits = lm.model(torch.tensor(lm.encode([as_messages("ask me")]))).logits[0, -1]
    assert [one.log_prob for one in found] == pytest.approx(
        logits.log_softmax(-1)[ids].tolist(), abs=1e-4
    )
    assert not any(one.greedy for one in found)
    lm.parts.head.weight.data[ids[7]] = 2 * lm.parts.head.weight.data[logits.argmax()]
    again = log_likelihoods(TransformersEngine(lm), [("ask me", text) for text in texts])
    assert [text for text, one in zip(texts, again, strict=True) if one.greedy] == ["h"]


def test_a_head_a_prompt_and_steering_are_in_force_where_the_gate_fires() -> None:
    lm = tiny_lm("llama")
    d, v = lm.hidden_size, lm.vocab_size
    torch.manual_seed(1)
    down, up, weight, bias = torch.randn(1, d), torch.randn(v, 1), torch.randn(v, d), torch.randn(v)
    heads = {
        "low": (LowRankHead(down, up, 0.5), lambda logits, h: logits + 0.5 * (h @ down.T) @ up.T),
        "full": (FullHead(weight, bias), lambda logits, h: h @ weight.T + bias),
    }
    own = TransformersEngine(lm, batch_size=2)
    for actuator, head in heads.values():
        found = log_likelihoods(own, PAIRS, always(actuator))
        for (prompt, reply), one in zip(PAIRS, found, strict=True):
            assert one.log_prob == pytest.approx(by_hand(lm, prompt, reply, head)[0], abs=1e-3)
    found = log_likelihoods(own, PAIRS, always(SystemPrompt("be brief")))
    assert found[1].log_prob == pytest.approx(
        by_hand(lm, *PAIRS[1], before="be brief")[0], abs=1e-4
    )
    plain = log_likelihoods(own, PAIRS)
    steering = Steering((1,), torch.randn(1, d), 0.0)
    assert [one.log_prob for one in log_likelihoods(own, PAIRS, always(steering))] == pytest.approx(
        [one.log_prob for one in plain]
    )
    moved = log_likelihoods(own, PAIRS, always(replace(steering, strength=5.0)))
    assert moved[0].log_prob != pytest.approx(plain[0].log_prob)
    assert log_likelihoods(own, PAIRS) == plain  # nothing is left on the model


def test_only_the_requests_on_which_the_gate_fires_are_changed() -> None:
    own, switch = engine(), fitted()
    asked = requests()[:12]
    decided = own.generate(asked, switch, max_new_tokens=switch.gate.pilot + 1, do_sample=False)
    fired = [reply.decision.fired for reply in decided]
    assert set(fired) == {True, False}
    assert isinstance(switch.actuator, LowRankHead)
    moved = int(switch.actuator.up.abs().sum(1).argmax())  # the head leaves other tokens alone
    pairs = [(e, own.lm.tokenizer.decode([moved])) for e in asked]
    plain, guarded, acted = (
        log_likelihoods(own, pairs, s) for s in (None, switch, always(switch.actuator))
    )
    for i, hit in enumerate(fired):
        assert guarded[i].log_prob == pytest.approx((acted if hit else plain)[i].log_prob, abs=1e-4)
        assert acted[i].log_prob != pytest.approx(plain[i].log_prob, abs=1e-3)
    assert log_likelihoods(own, [], switch) == []
    assert log_likelihoods(own, [("ask me", "")], Switch(Gate(), NoAction()))[0] == (0.0, True)
