"""A reply that the client has begun hides nothing from stage 1, and is not gone on with where that
fires."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from safeswitch.core.types import Example
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.nano import switch_path, weights_path
from safeswitch.nano.suites import load_suite
from safeswitch.switch.actuators.base import Canned, NoAction
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch

FIXED: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
BEGUN = "Sure, here is"


@cache
def engine() -> TransformersEngine:
    return TransformersEngine.load(weights_path())


@cache
def nano() -> Switch:
    return Switch.from_pretrained(switch_path())


def rows(suite: str, n: int = 12) -> list[Example]:
    return load_suite(suite, n, 0)


def begun(examples: list[Example]) -> list[Example]:
    return [replace(e, prefill=BEGUN) for e in examples]


def test_a_flagged_request_is_refused_from_its_own_end_whatever_reply_was_begun() -> None:
    bare = rows("plain_unsafe")
    score = {
        e.id: r.decision.scores["stage1"]
        for e, r in zip(bare, engine().generate(bare, nano(), **FIXED), strict=True)
    }
    refusals = engine().generate(
        bare, Switch(Gate(always=True), nano().actuator, nano().base), **FIXED
    )
    assert nano().gate.stage1 is not None
    found = engine().generate(begun(bare), nano(), **FIXED)
    fired = [reply.decision.fired and reply.decision.stage == "stage1" for reply in found]
    assert fired == [score[e.id] > nano().gate.stage1.threshold for e in bare]
    assert sum(fired) >= 10
    for example, reply, refusal in zip(bare, found, refusals, strict=True):
        if reply.decision.fired:
            assert reply.token_ids == refusal.token_ids
            assert reply.decision.scores["stage1"] == pytest.approx(score[example.id], abs=1e-4)
            assert (reply.decision.token_index, reply.decision.actuator) == (
                0,
                nano().actuator.kind,
            )


def test_others_go_on_from_what_was_begun_also_in_one_batch_with_flagged_ones() -> None:
    safe, bad = begun(rows("ordinary")), begun(rows("plain_unsafe", 4))
    plain = engine().generate(safe, **FIXED)
    together = engine().generate([*safe[:6], *bad, *safe[6:]], nano(), **FIXED)
    assert [r.token_ids for r in (*together[:6], *together[10:])] == [r.token_ids for r in plain]
    assert [r.token_ids for r in together[6:10]] == [
        engine().generate([e], nano(), **FIXED)[0].token_ids for e in bad
    ]
    assert all(r.decision.fired for r in together[6:10])


def test_observing_says_so_and_goes_on() -> None:
    bad = begun(rows("plain_unsafe", 4))
    seen = engine().generate(bad, replace(nano(), actuator=NoAction()), **FIXED)
    assert [(r.decision.fired, r.decision.stage, r.decision.actuator) for r in seen] == [
        (True, "stage1", "none")
    ] * 4
    assert [r.token_ids for r in seen] == [r.token_ids for r in engine().generate(bad, **FIXED)]


def test_a_stream_and_a_fixed_refusal_hold_nothing_of_what_was_begun() -> None:
    (bad,) = begun(rows("plain_unsafe", 1))
    whole = engine().generate([bad], nano(), **FIXED)[0]
    assert "".join(engine().stream(bad, nano(), **FIXED)) == whole.text
    canned = replace(nano(), actuator=Canned("No."))
    assert engine().generate([bad], canned, **FIXED)[0].text == "No."
