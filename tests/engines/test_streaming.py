"""Streams show decided text only, and end up with what ``generate`` gives."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from safeswitch.core.errors import DataError, SettingError
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.streaming import Release
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Actuator, SystemPrompt
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.engines.slow import Projection, pilot_point, random_head
from tests.engines.test_exactness import PROMPTS, K, two_stage
from tests.tiny import tiny_lm, tiny_tokenizer


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
        assert (
            lm.traits is not None
        )  # found by a few forward passes of their own, which are not to be counted
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
    reply = TransformersEngine(lm).generate(
        [prompt], switch, max_new_tokens=12, do_sample=False, streamer=recorder
    )[0]
    assert recorder.tokens == list(reply.token_ids)
    assert recorder.ended
    passed_stage1 = reply.decision.scores["stage1"] > switch.gate.stage1.threshold  # type: ignore[union-attr]
    assert recorder.passes[0] == (K + 1 if passed_stage1 else 1)


def test_watched_text_waits_for_the_next_reading(lm: LanguageModel) -> None:
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    never = Switch(Gate(watch=Stage(watch, 1.0), watch_every=4), random_head(lm))
    recorder = Recorder(tiny := tiny_lm("llama"))
    reply = TransformersEngine(tiny).generate(
        ["xyz"], never, max_new_tokens=11, do_sample=False, streamer=recorder
    )[0]
    assert recorder.tokens == list(reply.token_ids)
    for index, passes in enumerate(recorder.passes):
        readings = [p for p in range(1, passes) if p % 4 == 0 or p == len(reply.token_ids)]
        assert any(reading > index for reading in readings), (
            f"token {index} was shown before it was read"
        )


def test_a_reply_that_switches_after_text_was_shown_goes_on_with_its_refusal(
    lm: LanguageModel,
) -> None:
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
        stream = TransformersEngine(lm).stream(
            "tell me a story", max_new_tokens=10, do_sample=False
        )
        return "".join([piece async for piece in stream])

    plain = TransformersEngine(lm).generate(
        ["tell me a story"], max_new_tokens=10, do_sample=False
    )[0]
    assert asyncio.run(collect()) == plain.text


def test_closing_a_stream_early_stops_the_model(lm: LanguageModel) -> None:
    before = threading.active_count()
    stream = TransformersEngine(lm).stream(
        "tell me a story", max_new_tokens=450, do_sample=False, eos_token_id=-1
    )
    for _ in stream:
        break
    assert stream.reply is not None
    assert len(stream.reply.token_ids) < 450
    assert threading.active_count() == before


@pytest.mark.parametrize("early", [False, True])
def test_iterating_a_stream_a_second_time_ends_at_once(lm: LanguageModel, early: bool) -> None:
    stream = TransformersEngine(lm).stream(
        "tell me a story", max_new_tokens=30, do_sample=False, eos_token_id=-1
    )
    for _ in stream:
        if early:
            break
    again: list[list[str]] = []
    thread = threading.Thread(target=lambda: again.append(list(stream)), daemon=True)
    thread.start()
    thread.join(10)
    assert again == [[]]

    async def collect() -> list[str]:
        return [piece async for piece in stream]

    assert asyncio.run(collect()) == []


def test_text_after_the_last_reading_of_the_watch_is_not_held_back() -> None:
    lm = tiny_lm("llama")
    watch = Projection(pilot_point(lm, 2), lm.hidden_size, seed=9)
    never = Switch(Gate(watch=Stage(watch, 1.0), watch_every=2, watch_until=4), random_head(lm))
    recorder = Recorder(lm)
    TransformersEngine(lm).generate(
        ["xyz"], never, max_new_tokens=9, do_sample=False, eos_token_id=-1, streamer=recorder
    )
    assert recorder.passes == [
        3,
        3,
        5,
        5,
        5,
        6,
        7,
        8,
        9,
    ]  # tokens 1-2 and 3-4 with their reading, the fifth with the last


@pytest.mark.parametrize("kind", ["mamba", "system prompt"])
def test_a_reply_run_again_after_text_was_shown_is_set_off_by_one_empty_line(kind: str) -> None:
    lm = tiny_lm("mamba" if kind == "mamba" else "llama")
    actuator: Actuator = random_head(lm) if kind == "mamba" else SystemPrompt("be careful")
    engine = TransformersEngine(lm)
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    for bar in (0.3, 0.5, 0.7, 0.9):
        switch = Switch(Gate(watch=Stage(watch, bar), watch_every=2), actuator)
        for prompt in PROMPTS:
            whole = engine.generate([prompt], switch, max_new_tokens=16, do_sample=False)[0]
            if whole.decision.fired and whole.decision.token_index > 4:
                pieces = list(engine.stream(prompt, switch, max_new_tokens=16, do_sample=False))
                assert pieces.count("\n\n") == 1
                return
    pytest.fail("no reply switched late; choose other thresholds")


class Counting:
    """A tokenizer that counts the tokens it is asked to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.count = tokenizer, 0

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.count += len(tokens)
        return str(self.tokenizer.decode(tokens, **options))


def released(tokenizer: Any, tokens: list[int]) -> list[str]:
    pieces: list[str] = []
    release = Release(tokenizer, pieces.append)
    release.put(torch.tensor([[1]]))
    for token in tokens:
        release.put(torch.tensor([token]))
    release.end()
    return pieces


def test_a_long_reply_is_released_whole_and_no_line_is_decoded_again_after_its_end() -> None:
    text = "ein Käse 🧀\n\n  naïve\n" * 40
    tokenizer = tiny_tokenizer()
    tokens = tokenizer(text)["input_ids"]
    counting = Counting(tokenizer)
    pieces = released(counting, tokens)
    assert "".join(pieces) == text
    assert "🧀" in pieces
    assert counting.count < 20 * len(tokens)


def test_spaces_at_the_beginning_of_a_line_survive_a_tokenizer_that_drops_the_first() -> None:
    vocab = {"<unk>": 0, "▁def": 1, "▁": 2, "\n": 3, "<eos>": 4}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    tokens = [1, 3, 2, 1, 3, 4, 1]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert whole == "def\n  def\n def"
    assert "".join(released(tokenizer, tokens)) == whole


def test_an_error_inside_the_stream_reaches_the_listener(lm: LanguageModel) -> None:
    with pytest.raises(DataError, match="empty"):
        list(TransformersEngine(lm).stream("  "))
    with pytest.raises(SettingError, match="one prompt"):
        TransformersEngine(lm).generate(["a", "b"], streamer=Recorder(lm))
