"""Every row of a batch has its own follower: decided tokens only, the reply as soon as it is whole,
and its own end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Decision, Reply, Tokens
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.streaming import Follower
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import NoAction, SystemPrompt
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.session import Session
from safeswitch.switch.switch import Switch
from tests.engines.slow import Projection, pilot_point, random_head
from tests.engines.test_exactness import PROMPTS, two_stage
from tests.tiny import tiny_lm


class Seen(Follower):
    """Keeps what it is told, and the number of forward passes run when it was told that the reply
    is whole."""

    def __init__(self, lm: LanguageModel, leave_after: int | None = None) -> None:
        self.tokens: list[int] = []
        self.drafts: list[list[int]] = [[]]
        self.readings: list[Decision] = []
        self.earlier: list[list[int]] = []
        self.reply: Reply | None = None
        self.passes = self.whole_at = 0
        self.leave_after = leave_after
        self.handle = lm.parts.head.register_forward_hook(self._tick)

    def _tick(self, *_: object) -> None:
        self.passes += 1

    def token(self, token: int) -> None:
        assert self.reply is None
        self.tokens.append(token)

    def written(self, token: int) -> None:
        self.drafts[-1].append(token)

    def rolled_back(self) -> None:
        self.drafts.append([])

    def read(self, session: Session) -> None:
        self.readings.append(session.decision)

    def restart(self) -> None:
        self.earlier.append(self.tokens)
        self.tokens = []

    def done(self, reply: Reply) -> None:
        assert self.reply is None
        self.reply, self.whole_at = reply, self.passes

    def gone(self) -> bool:
        return self.leave_after is not None and self.passes >= self.leave_after


def watched(lm: LanguageModel) -> Switch:
    watch = Projection(pilot_point(lm, 4), lm.hidden_size, seed=9)
    return Switch(Gate(watch=Stage(watch, 0.5), watch_every=2), random_head(lm))


@pytest.mark.parametrize("kind", ["llama", "mamba", "mistral_sliding"])
@pytest.mark.parametrize("how", ["staged", "watched", "edited"])
def test_followers_of_a_mixed_batch_are_told_what_generate_returns(kind: str, how: str) -> None:
    lm = tiny_lm(kind)
    switch = two_stage(lm)[0] if how == "staged" else watched(lm)
    if how == "edited":
        switch = replace(switch, actuator=SystemPrompt("x"))
    assert lm.traits is not None
    followers = [Seen(lm) for _ in PROMPTS]
    replies = TransformersEngine(lm).generate(
        PROMPTS, switch, max_new_tokens=12, do_sample=False, followers=followers
    )
    assert any(reply.decision.fired for reply in replies)
    for follower, reply in zip(followers, replies, strict=True):
        assert follower.reply is not None
        assert replace(follower.reply, decision=reply.decision) == reply
        assert (follower.reply.decision.fired, follower.reply.decision.stage) == (
            reply.decision.fired,
            reply.decision.stage,
        )
        assert tuple(follower.tokens) == reply.token_ids


def test_what_was_shown_before_a_late_switch_is_the_untouched_reply_up_to_the_last_reading() -> (
    None
):
    lm = tiny_lm("llama")
    engine, late = TransformersEngine(lm), 0
    plain = engine.generate(PROMPTS, max_new_tokens=16, do_sample=False)
    for bar in (0.3, 0.5, 0.7, 0.9):
        switch = watched(lm)
        assert switch.gate.watch is not None
        switch = replace(
            switch, gate=replace(switch.gate, watch=replace(switch.gate.watch, threshold=bar))
        )
        followers = [Seen(lm) for _ in PROMPTS]
        replies = engine.generate(
            PROMPTS, switch, max_new_tokens=16, do_sample=False, followers=followers
        )
        for follower, reply, bare in zip(followers, replies, plain, strict=True):
            if reply.decision.fired and reply.decision.token_index > 2:
                late += 1
                read = (reply.decision.token_index - 1) // 2 * 2
                assert follower.earlier == [list(bare.token_ids[:read])]
            else:
                assert follower.earlier == []
    assert late


@pytest.mark.parametrize("how", ["staged", "watched", "edited"])
def test_what_is_written_rolled_back_and_read_is_told_as_it_happens(how: str) -> None:
    lm = tiny_lm("llama")
    engine = TransformersEngine(lm)
    switch = two_stage(lm)[0] if how == "staged" else watched(lm)
    if how == "edited":
        switch = replace(switch, actuator=SystemPrompt("x"))
    plain = engine.generate(PROMPTS, max_new_tokens=12, do_sample=False)
    followers = [Seen(lm) for _ in PROMPTS]
    replies = engine.generate(
        PROMPTS, switch, max_new_tokens=12, do_sample=False, followers=followers
    )
    fired = 0
    for follower, reply, own in zip(followers, replies, plain, strict=True):
        *dropped, last = follower.drafts
        assert tuple(last) == reply.token_ids
        scores: dict[str, float] = {}
        for reading in follower.readings:
            scores |= reading.scores
        assert scores == reply.decision.scores
        if reply.decision.fired and reply.decision.token_index:
            fired += 1
            assert dropped == [list(own.token_ids[: reply.decision.token_index])]
    assert fired


def test_a_short_reply_is_handed_out_while_the_others_run_on() -> None:
    lm = tiny_lm("llama")
    limits = [3, 40, 7]
    followers = [Seen(lm) for _ in limits]
    engine = TransformersEngine(lm)
    options = {"do_sample": False, "eos_token_id": -1}
    replies = engine.generate(PROMPTS[:3], max_new_tokens=limits, followers=followers, **options)
    assert [len(reply.token_ids) for reply in replies] == limits
    assert [reply.finish_reason for reply in replies] == ["length"] * 3
    spent = followers[1].passes - followers[1].whole_at
    assert [f.whole_at - followers[1].whole_at + 40 for f in followers] == limits
    assert spent == 0
    for prompt, limit, reply in zip(PROMPTS, limits, replies, strict=False):
        assert (
            engine.generate([prompt], max_new_tokens=limit, **options)[0].token_ids
            == reply.token_ids
        )


def test_a_row_that_nobody_waits_for_ends_and_the_others_do_not_notice() -> None:
    lm = tiny_lm("llama")
    assert lm.traits is not None
    switch, _ = two_stage(lm)
    engine = TransformersEngine(lm)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": -1}
    whole = engine.generate(PROMPTS, switch, **options)
    followers = [Seen(lm, leave_after=5 if i % 2 else None) for i in range(len(PROMPTS))]
    replies = engine.generate(PROMPTS, switch, followers=followers, **options)
    for i, (reply, other) in enumerate(zip(replies, whole, strict=True)):
        assert reply.decision.fired == other.decision.fired
        if i % 2:
            assert len(reply.token_ids) < 10
            assert followers[i].reply is not None
        else:
            assert reply.token_ids == other.token_ids


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_row_that_has_ended_near_the_end_of_its_context_does_not_stop_the_others(
    kind: str,
) -> None:
    lm = tiny_lm(kind)
    rows = [Tokens(tuple(9 + i % 90 for i in range(505)), "long"), Tokens((9, 10, 11), "short")]
    options = {"do_sample": False, "eos_token_id": -1}
    together = TransformersEngine(lm).generate(rows, max_new_tokens=[7, 60], **options)
    alone = [
        TransformersEngine(lm).generate([r], max_new_tokens=n, **options)[0]
        for r, n in zip(rows, (7, 60), strict=True)
    ]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]


def test_observing_shows_each_token_at_once_and_changes_nothing() -> None:
    lm = tiny_lm("llama")
    assert lm.traits is not None
    switch, _ = two_stage(lm)
    engine = TransformersEngine(lm)
    plain = engine.generate(PROMPTS, max_new_tokens=12, do_sample=False)
    enforced = engine.generate(PROMPTS, switch, max_new_tokens=12, do_sample=False)
    seen = [Seen(lm) for _ in PROMPTS]
    watched = engine.generate(
        PROMPTS,
        replace(switch, actuator=NoAction()),
        max_new_tokens=12,
        do_sample=False,
        followers=seen,
    )
    assert [r.token_ids for r in watched] == [r.token_ids for r in plain]
    assert [r.decision.fired for r in watched] == [r.decision.fired for r in enforced]
    assert [tuple(s.tokens) for s in seen] == [r.token_ids for r in plain]


def test_a_prompt_of_tokens_is_taken_as_it_is() -> None:
    lm = tiny_lm("llama")
    engine = TransformersEngine(lm)
    switch, _ = two_stage(lm)
    asked = [Tokens(tuple(lm.encode([prompt])[0]), prompt) for prompt in PROMPTS]
    assert [
        r.token_ids for r in engine.generate(asked, switch, max_new_tokens=8, do_sample=False)
    ] == [r.token_ids for r in engine.generate(PROMPTS, switch, max_new_tokens=8, do_sample=False)]
    with pytest.raises(DataError, match="empty"):
        Tokens((), "")
    with pytest.raises(SettingError, match="given as tokens"):
        engine.generate(asked, Switch(Gate(always=True), SystemPrompt("x")), max_new_tokens=8)


def test_lists_of_another_length_are_refused() -> None:
    engine = TransformersEngine(tiny_lm("llama"))
    with pytest.raises(SettingError, match="2 prompts but 1 max_new_tokens"):
        engine.generate(["a", "b"], max_new_tokens=[3])
    with pytest.raises(SettingError, match="2 prompts but 1 followers"):
        engine.generate(["a", "b"], followers=[Follower()])
