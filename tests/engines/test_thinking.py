"""Reasoning models: what is read behind the end of thinking and inside it equals runs row by row;
nothing undecided shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safeswitch.activations.record import record
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Decision, Example, Message, Position, ReadPoint, Reply, Tokens
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.score import log_likelihoods
from safeswitch.engines.transformers.streaming import Follower, RowSink
from safeswitch.fitting.head_data import closed_first
from safeswitch.fitting.observe import spoken
from safeswitch.models.language_model import LanguageModel
from safeswitch.models.thinking import Thinking, Thread
from safeswitch.switch.actuators.base import NoAction
from safeswitch.switch.capability import vllm_refusal
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.engines.slow import Projection, pilot_point, prompt_point, random_head, reply_alone
from tests.engines.test_exactness import PROMPTS, assert_untouched, snapshot
from tests.engines.test_streaming import Recorder
from tests.engines.thinking_made import (
    NEW,
    OPEN_TEMPLATE,
    START,
    answer_by_hand,
    plain_reply,
    read_by_hand,
    score_by_hand,
    thinking_lm,
)
from tests.switch.made import WORDS, settings, two_of_three
from tests.tiny import CHAT_TEMPLATE, tiny_lm, tiny_tokenizer

THINKS = "<|assistant|>{% if add_generation_prompt %}<think>{% endif %}"


def answer_point(lm: LanguageModel, k: int, layer: int = -1) -> ReadPoint:
    return ReadPoint(lm.layer(layer), Position("answer", k))


def answer_switch(
    lm: LanguageModel, k: int, layer: int = -1
) -> tuple[Switch, list[bool], list[int]]:
    """Stage 2 alone at ``answer:k`` with the median as threshold; which rows fire, and after how
    many tokens each is read."""
    prober = Projection(answer_point(lm, k, layer), lm.hidden_size, seed=3)
    scores, places = [], []
    for row in lm.encode(PROMPTS):
        fed, reply = read_by_hand(lm, row, k)
        scores.append(score_by_hand(lm, prober, row, reply[:fed]))
        places.append(fed)
    bar = sum(sorted(scores)[3:5]) / 2
    return (
        Switch(Gate(stage2=Stage(prober, bar)), random_head(lm)),
        [s > bar for s in scores],
        places,
    )


@pytest.mark.parametrize(
    ("name", "k"),
    [("llama", 0), ("llama", 2), ("qwen3", 1), ("gemma2", 1), ("gpt2", 0), ("mamba", 2)],
)
def test_rows_read_behind_their_thinking_equal_each_row_alone(name: str, k: int) -> None:
    lm = thinking_lm(name)
    switch, fired, places = answer_switch(lm, k)
    assert len(set(places)) > 2
    before = snapshot(lm)
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=NEW, do_sample=False)
    for row, hit, fed, reply in zip(lm.encode(PROMPTS), fired, places, replies, strict=True):
        assert (reply.decision.fired, reply.decision.stage, reply.decision.token_index) == (
            hit,
            "stage2",
            fed,
        )
        assert list(reply.token_ids) == (
            reply_alone(lm, row, NEW, random_head(lm)) if hit else plain_reply(lm, row)
        )
    assert_untouched(lm, before)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_inner_layer_is_read_behind_thinking_too(name: str) -> None:
    lm = thinking_lm(name)
    switch, fired, _ = answer_switch(lm, 1, layer=1)
    replies = TransformersEngine(lm, batch_size=3).generate(
        PROMPTS, switch, max_new_tokens=NEW, do_sample=False
    )
    assert [r.decision.fired for r in replies] == fired


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_the_watch_reads_inside_thinking_while_stage_two_still_waits(name: str) -> None:
    lm = thinking_lm(name)
    first, _, places = answer_switch(lm, 1)
    never = replace(first.gate.stage2, threshold=1.0)  # type: ignore[type-var]
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    scores = {}
    rows = lm.encode(PROMPTS)
    for i, row in enumerate(rows):
        reply = plain_reply(lm, row)
        read = sorted({*range(4, len(reply) + 1, 4), len(reply)})
        scores[i] = {t: score_by_hand(lm, watch, row, reply[:t]) for t in read}
    bar = sorted(max(s.values()) for s in scores.values())[1] + 1e-4
    expected = {
        i: next((t for t, value in s.items() if value > bar), None) for i, s in scores.items()
    }
    assert any(t is not None and t < places[i] for i, t in expected.items()), (
        "no row fires while it thinks"
    )
    switch = Switch(Gate(stage2=never, watch=Stage(watch, bar), watch_every=4), random_head(lm))
    replies = TransformersEngine(lm).generate(PROMPTS, switch, max_new_tokens=NEW, do_sample=False)
    for i, (row, reply) in enumerate(zip(rows, replies, strict=True)):
        hit = expected[i]
        assert reply.decision.fired == (hit is not None)
        if hit is not None:
            assert (reply.decision.stage, reply.decision.token_index) == ("watch", hit)
        assert list(reply.token_ids) == reply_alone(
            lm, row, NEW, random_head(lm) if hit is not None else None
        )


def test_stage_one_clears_a_row_before_it_thinks() -> None:
    lm = thinking_lm()
    switch, _, _ = answer_switch(lm, 0)
    first = Projection(prompt_point(lm), lm.hidden_size, seed=1)
    bar = sorted(score_by_hand(lm, first, row, []) for row in lm.encode(PROMPTS))[3]
    gate = replace(
        switch.gate, stage1=Stage(first, bar), stage2=replace(switch.gate.stage2, threshold=0.0)
    )  # type: ignore[type-var]
    for row, reply in zip(
        lm.encode(PROMPTS),
        TransformersEngine(lm).generate(PROMPTS, Switch(gate, switch.actuator), max_new_tokens=6),
        strict=True,
    ):
        assert reply.decision.fired == (score_by_hand(lm, first, row, []) > bar)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_no_token_is_shown_before_the_reading_behind_thinking(prompt: str) -> None:
    lm = thinking_lm()
    switch, fired, places = answer_switch(lm, 1)
    at = PROMPTS.index(prompt)
    recorder = Recorder(lm)
    reply = TransformersEngine(lm).generate(
        [prompt], switch, max_new_tokens=NEW, do_sample=False, streamer=recorder
    )[0]
    assert recorder.tokens == list(reply.token_ids)
    assert reply.decision.fired == fired[at]
    assert (
        recorder.passes[0] == places[at] + 1
    )  # the prompt's pass, and one for each token that was fed


@pytest.mark.parametrize("gated", ["stage2", "watch", ""])
def test_hidden_thinking_appears_in_no_stream_and_no_text(gated: str) -> None:
    lm = thinking_lm()
    switch, _, _ = answer_switch(lm, 1)
    if gated == "watch":
        watch = Stage(Projection(pilot_point(lm, 4), lm.hidden_size, seed=9), 0.9)
        switch = Switch(Gate(watch=watch, watch_every=4), switch.actuator)
    engine = TransformersEngine(lm)
    kinds = set()
    for prompt in PROMPTS:
        options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
        whole = engine.generate([prompt], switch if gated else None, **options)[0]
        hidden = engine.generate(
            [prompt], switch if gated else None, show_thinking=False, **options
        )[0]
        assert hidden.token_ids == whole.token_ids
        start = answer_by_hand(lm, hidden.token_ids)
        shown = (
            hidden.token_ids[start:]
            if start is not None
            else hidden.token_ids
            if hidden.decision.fired
            else ()
        )
        assert hidden.text == lm.tokenizer.decode(list(shown), skip_special_tokens=True)
        assert whole.text == lm.tokenizer.decode(list(whole.token_ids), skip_special_tokens=True)
        streamed = "".join(
            engine.stream(prompt, switch if gated else None, show_thinking=False, **options)
        )
        plain = plain_reply(lm, lm.encode([prompt])[0])
        thought, read = answer_by_hand(lm, plain) or len(plain), hidden.decision.token_index
        if (
            hidden.decision.stage == "watch" and hidden.decision.fired and read > thought
        ):  # some answer was cleared before
            cleared = lm.tokenizer.decode(plain[thought:read], skip_special_tokens=True)
            assert streamed.endswith(hidden.text)
            assert cleared.startswith(streamed.removesuffix(hidden.text).rstrip("\n"))
        else:
            assert streamed == hidden.text
        kinds.add((start is None, hidden.decision.fired))
    assert len(kinds) > 1


def test_a_reply_of_which_only_hidden_thinking_came_begins_anew_without_a_break() -> None:
    class Noting(Follower):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def token(self, token: int) -> None:
            self.told.append(token)

        def restart(self) -> None:
            self.told.append("break")

    thinking, noting = Thinking(("a", "b"), (3,), (4,), tiny_tokenizer()), Noting()
    sink = RowSink(noting, lambda: Thread(thinking, True))
    for token in (50, 51, 52):
        sink.take(token)
    sink.show(2)
    sink.begin()
    for token in (60, 4, 61):
        sink.take(token)
    sink.show(3)
    assert noting.told == [61]


@pytest.mark.parametrize("budget", [0, 3, 50])
def test_a_budget_ends_thinking_with_its_mark_and_changes_nothing_else(budget: int) -> None:
    lm = thinking_lm()
    mark = (40, 41)  # two tokens, of which the replies hold the first now and then
    lm.thinking = Thinking(("<|think|>", "(end)"), (START,), mark, lm.tokenizer)
    replies = TransformersEngine(lm).generate(
        PROMPTS, max_new_tokens=NEW, do_sample=False, thinking_budget=budget
    )
    for row, reply in zip(lm.encode(PROMPTS), replies, strict=True):
        plain = reply_alone(lm, row, budget)
        expected = plain if len(plain) < budget or plain[-1:] == [2] else [*plain, *mark]
        if expected != plain:
            expected = [*expected, *reply_alone(lm, [*row, *expected], NEW - len(expected))]
        assert list(reply.token_ids) == expected[:NEW]


def test_a_budget_lets_refusals_be() -> None:
    lm = thinking_lm()
    switch, _, _ = answer_switch(lm, 0)
    always = Switch(Gate(always=True), switch.actuator)
    replies = TransformersEngine(lm).generate(
        PROMPTS, always, max_new_tokens=8, do_sample=False, thinking_budget=2
    )
    assert [list(r.token_ids) for r in replies] == [
        reply_alone(lm, row, 8, random_head(lm)) for row in lm.encode(PROMPTS)
    ]


def test_recorded_states_are_those_of_full_passes() -> None:
    lm = thinking_lm()
    points = [answer_point(lm, 2), answer_point(lm, 0, 1), prompt_point(lm)]
    replies, activations = TransformersEngine(lm).collect(PROMPTS, points, max_new_tokens=NEW)
    for point in points:
        prober = Projection(point, lm.hidden_size)
        found = prober.score(activations)
        for i, row in enumerate(lm.encode(PROMPTS)):
            fed, reply = read_by_hand(lm, row, point.position.index)
            assert list(replies[i].token_ids) == reply
            known = reply[:fed] if point.position.kind == "answer" else []
            assert float(found[i]) == pytest.approx(score_by_hand(lm, prober, row, known), abs=1e-5)
    with pytest.raises(Exception, match="no reply token"):
        record(lm, lm.encode(["a"]), [len(lm.encode(["a"])[0])], points)


def test_a_switch_fitted_behind_thinking_decides_at_run_time_on_what_it_was_fitted_on(
    tmp_path: Path,
) -> None:
    lm = thinking_lm()
    engine = TransformersEngine(lm, batch_size=64)
    data = [
        Example(
            f"r{i}",
            (Message("user", f"{'ask' if i % 2 else 'ZAP'} {WORDS[i % 8]} {i}"),),
            "safe" if i % 2 else "unsafe",
            reply=None if i % 2 else "No, sorry.",
        )
        for i in range(80)
    ]
    chosen = settings(pilot_from="answer", max_new_tokens=NEW, stages="direct")
    switch = Switch.fit(engine, data, chosen, complied=two_of_three)
    assert {str(p.position) for p in switch.gate.pilot_points} == {"answer:1"}
    _, activations = engine.collect(data, switch.gate.pilot_points, max_new_tokens=NEW)
    scores = switch.gate.stage2.prober.score(activations)  # type: ignore[union-attr]
    replies = engine.generate(data, switch, max_new_tokens=NEW, do_sample=False)
    told = torch.tensor([r.decision.scores["stage2"] for r in replies])
    torch.testing.assert_close(told, scores.float(), atol=1e-5, rtol=0)
    switch.save_pretrained(tmp_path)
    again = engine.generate(
        data[:5], Switch.from_pretrained(tmp_path), max_new_tokens=NEW, do_sample=False
    )
    assert [r.token_ids for r in again] == [r.token_ids for r in replies[:5]]
    assert "end of thinking" in (vllm_refusal(switch) or "")


def test_a_refusal_to_learn_closes_the_thinking_that_the_prompt_has_opened() -> None:
    lm = thinking_lm()
    assert closed_first(lm, ["a"], ["No"]) == [[34, *lm.tokenizer("No")["input_ids"], 2]]
    assert closed_first(thinking_lm(template=CHAT_TEMPLATE), ["a"], ["No"]) == ["No"]
    assert closed_first(tiny_lm(), ["a"], ["No"]) == ["No"]


def test_a_judge_is_shown_the_answer_and_never_the_thinking() -> None:
    lm = thinking_lm()
    reply = Reply("-", (50, 34, 60, 61), "length", Decision(False, "none"), 4)
    assert spoken(lm, "a", reply) == lm.tokenizer.decode([60, 61])
    assert spoken(lm, "a", replace(reply, token_ids=(50, 60))) == ""
    refusal = replace(reply, token_ids=(50, 60), decision=Decision(True, "stage1"))
    assert spoken(lm, "a", refusal) == lm.tokenizer.decode([50, 60])
    assert spoken(tiny_lm(), "a", reply) == "-"


def test_marks_are_found_in_vocabulary_or_template_or_given() -> None:
    assert tiny_lm().thinking is None
    found = tiny_lm(chat_template=CHAT_TEMPLATE.replace("<|assistant|>", THINKS)).thinking
    assert found is not None
    assert found.marks == ("<think>", "</think>")
    assert tiny_tokenizer().decode(list(found.end)) == "</think>"
    given = LanguageModel(tiny_lm().model, tiny_tokenizer(), thinking=("<|think|>", "<|tool|>"))
    assert (given.needs_thinking().start, given.needs_thinking().end) == ((START,), (START + 1,))


def test_what_a_user_writes_opens_and_ends_no_thinking() -> None:
    lm = LanguageModel(
        tiny_lm().model,
        tiny_tokenizer(chat_template=OPEN_TEMPLATE),
        thinking=("<|think|>", "<|tool|>"),
    )

    def opened(*turns: Message, of: LanguageModel = lm) -> bool | None:
        return of.thinking_opened(turns, of.encode([turns])[0])

    assert opened(Message("user", "<|think|> <|tool|>")) is True
    plain = LanguageModel(lm.model, tiny_tokenizer(), thinking=("<|think|>", "<|tool|>"))
    assert opened(Message("user", "<|think|>"), of=plain) is None
    asked = Message("user", "hi")
    assert opened(asked, Message("assistant", "<|think|>well"), of=plain) is True
    assert opened(asked, Message("assistant", "<|think|>well<|tool|>so"), of=plain) is False
    assert opened(asked, Message("assistant", "so"), of=plain) is False
    closed = LanguageModel(
        lm.model,
        tiny_tokenizer(chat_template=OPEN_TEMPLATE.replace("<|think|>{%", "<|think|><|tool|>{%")),
        thinking=("<|think|>", "<|tool|>"),
    )
    assert opened(asked, of=closed) is False


@pytest.mark.parametrize(
    ("reply", "opened", "start"),
    [
        ([5, 6, 4, 9], True, 3),
        ([5, 6], True, None),
        ([3, 6, 4, 9], None, 3),
        ([40, 3, 6, 4, 9], None, 4),
        ([5, 4, 9], None, 0),
        ([40, 5], None, 0),
        ([], None, None),
        ([40], None, None),
        ([9, 4], False, 0),
        ([3, 6], None, None),
        ([4, 4], True, 1),
    ],
)
def test_the_answer_begins_behind_the_first_end_mark(
    reply: list[int], opened: bool | None, start: int | None
) -> None:
    space = tiny_tokenizer()(" ")["input_ids"][0]
    thinking = Thinking(("a", "b"), (3,), (4,), tiny_tokenizer())
    assert thinking.answer_start([space if t == 40 else t for t in reply], opened) == start


def test_a_model_decides_by_its_first_token_whether_it_thinks() -> None:
    lm = thinking_lm(template=CHAT_TEMPLATE, start=(34,))
    rows = lm.encode(PROMPTS)
    firsts = {reply_alone(lm, row, 1)[0] for row in rows}
    lm.thinking = Thinking(("a", "b"), (next(iter(firsts)),), (229,), lm.tokenizer)
    prober = Projection(answer_point(lm, 1), lm.hidden_size, seed=3)
    replies = TransformersEngine(lm).generate(
        PROMPTS,
        Switch(Gate(stage2=Stage(prober, 1.0)), NoAction()),
        max_new_tokens=NEW,
        do_sample=False,
    )
    places = set()
    for row, reply in zip(rows, replies, strict=True):
        plain = plain_reply(lm, row)
        fed = 1
        if plain[0] == next(iter(firsts)):
            fed = min(plain.index(229) + 2, len(plain)) if 229 in plain else len(plain)
        assert reply.decision.token_index == fed
        assert reply.decision.scores["stage2"] == pytest.approx(
            score_by_hand(lm, prober, row, plain[:fed]), abs=1e-5
        )
        places.add(fed)
    assert len(places) > 1


def test_what_cannot_be_done_is_refused() -> None:
    lm, engine = tiny_lm(), TransformersEngine(tiny_lm())
    prober = Projection(answer_point(lm, 1), lm.hidden_size)
    switch = Switch(Gate(stage2=Stage(prober, 0.5)), random_head(lm))
    for options in ({"switch": switch}, {"thinking_budget": 4}):
        with pytest.raises(SettingError, match="no thinking marks that are known"):
            engine.generate(["a"], max_new_tokens=3, **options)
    with pytest.raises(SettingError, match="thinking_budget must be 0"):
        TransformersEngine(thinking_lm()).generate(["a"], thinking_budget=-1)
    with pytest.raises(SettingError, match="stage1 must read the prompt only"):
        Gate(stage1=Stage(prober, 0.5))
    both = Projection(answer_point(lm, 1), lm.hidden_size)
    both.points = (answer_point(lm, 1), pilot_point(lm, 1))
    with pytest.raises(SettingError, match="pilot points or answer points, not both"):
        Gate(stage2=Stage(both, 0.5))
    with pytest.raises(SettingError, match="a given reply has none"):
        log_likelihoods(TransformersEngine(thinking_lm()), [("a", "b")], switch)
    with pytest.raises(SettingError, match="pilot_from must be one of"):
        settings(pilot_from="thinking")
    assert TransformersEngine(thinking_lm()).generate(
        [Tokens((1, 4, 30), "x")], thinking_budget=2, max_new_tokens=3
    )
