"""Streams show decided text only, and end up with what ``generate`` gives."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from safeswitch.core.errors import DataError, SettingError
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.engines.slow import Projection, pilot_point, random_head
from tests.engines.test_exactness import PROMPTS, K, two_stage
from tests.tiny import tiny_lm


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm("llama")


class Recorder(BaseStreamer):
    """Keeps every token with the number of forward passes that had been run when it came."""

    def __init__(self, lm: LanguageModel) -> None:
        self.tokens: list[int] = []
        self.passes: list[int] = []
        self.count = 0
        self.ended = False
        self._prompt = True
        assert lm.traits is not None  # found by a few forward passes of their own, which are not to be counted
        lm.parts.head.register_forward_hook(self._tick)

    def _tick(self, *_: Any) -> None:
        self.count += 1

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        self.tokens.append(int(value))
        self.passes.append(self.count)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("prompt", PROMPTS)
def test_pieces_join_to_the_reply_of_generate(lm: LanguageModel, prompt: str) -> None:
    switch, _ = two_stage(lm)
    engine = TransformersEngine(lm)
    whole = engine.generate([prompt], switch, max_new_tokens=12, do_sample=False)[0]
    stream = engine.stream(prompt, switch, max_new_tokens=12, do_sample=False)
    assert "".join(stream) == whole.text
    assert stream.reply is not None
    assert stream.reply.token_ids == whole.token_ids
    assert stream.reply.decision.fired == whole.decision.fired


@pytest.mark.parametrize("prompt", PROMPTS)
def test_no_pilot_token_of_a_flagged_request_is_ever_shown(prompt: str) -> None:
    lm = tiny_lm("llama")
    switch, _ = two_stage(lm)
    recorder = Recorder(lm)
    reply = TransformersEngine(lm).generate([prompt], switch, max_new_tokens=12, do_sample=False, streamer=recorder)[0]
    assert recorder.tokens == list(reply.token_ids)
    assert recorder.ended
    passed_stage1 = reply.decision.scores["stage1"] > switch.gate.stage1.threshold  # type: ignore[union-attr]
    assert recorder.passes[0] == (K + 1 if passed_stage1 else 1)


def test_watched_text_waits_for_the_next_reading(lm: LanguageModel) -> None:
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    never = Switch(Gate(watch=Stage(watch, 1.0), watch_every=4), random_head(lm))
    recorder = Recorder(tiny := tiny_lm("llama"))
    reply = TransformersEngine(tiny).generate(["xyz"], never, max_new_tokens=11, do_sample=False, streamer=recorder)[0]
    assert recorder.tokens == list(reply.token_ids)
    for index, passes in enumerate(recorder.passes):
        readings = [p for p in range(1, passes) if p % 4 == 0 or p == len(reply.token_ids)]
        assert any(reading > index for reading in readings), f"token {index} was shown before it was read"


def test_a_reply_that_switches_after_text_was_shown_goes_on_with_its_refusal(lm: LanguageModel) -> None:
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    engine = TransformersEngine(lm)
    for bar in (0.3, 0.5, 0.7, 0.9):
        switch = Switch(Gate(watch=Stage(watch, bar), watch_every=2), random_head(lm))
        whole = engine.generate(PROMPTS, switch, max_new_tokens=16, do_sample=False)
        for prompt, reply in zip(PROMPTS, whole, strict=True):
            if reply.decision.fired and reply.decision.token_index > 4:
                plain = engine.generate([prompt], max_new_tokens=16, do_sample=False)[0]
                shown = "".join(engine.stream(prompt, switch, max_new_tokens=16, do_sample=False))
                cleared = lm.tokenizer.decode(plain.token_ids[: reply.decision.token_index - 2])
                assert shown.endswith(reply.text)
                assert cleared.startswith(shown[: -len(reply.text)].rstrip("\n").rstrip("�"))
                return
    pytest.fail("no reply switched late; choose other thresholds")


def test_async_streams_give_the_same_pieces(lm: LanguageModel) -> None:
    async def collect() -> str:
        stream = TransformersEngine(lm).stream("tell me a story", max_new_tokens=10, do_sample=False)
        return "".join([piece async for piece in stream])

    plain = TransformersEngine(lm).generate(["tell me a story"], max_new_tokens=10, do_sample=False)[0]
    assert asyncio.run(collect()) == plain.text


def test_closing_a_stream_early_stops_the_model(lm: LanguageModel) -> None:
    stream = TransformersEngine(lm).stream("tell me a story", max_new_tokens=450, do_sample=False, eos_token_id=-1)
    for _ in stream:
        break
    assert stream.reply is not None
    assert len(stream.reply.token_ids) < 450
    assert threading.active_count() < 20


def test_an_error_inside_the_stream_reaches_the_listener(lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="empty"):
        list(TransformersEngine(lm).stream("  "))
    with pytest.raises(SettingError, match="one prompt"):
        TransformersEngine(lm).generate(["a", "b"], streamer=Recorder(lm))
