"""Nano under its own switch in a real vLLM engine: the transformers engine's replies; and
conversations with a refused turn, its pages in the prefix cache, and what comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from safeswitch.nano import judge, weights_path
from safeswitch.nano.suites import load_suite
from tests.engines.vllm_asked import assert_same
from tests.engines.vllm_made import needs_vllm, vllm_options
from tests.nano.made_talks import NEW, guard, nano, talks

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    from safeswitch.engines.vllm.engine import VLLMEngine

    with VLLMEngine(weights_path(), guard(), **vllm_options(max_model_len=512)) as made:
        yield made


def test_after_a_refused_turn_honest_requests_are_answered_as_by_the_model_itself(
    engine: Any,
) -> None:
    found = talks()
    refused = engine.generate(list(found.refused), max_new_tokens=56)
    assert all(reply.decision.fired for reply in refused)
    # the refused turn's prompt, and its pilot tokens, are in the prefix cache now
    found.check(engine.generate(list(found.conversations), max_new_tokens=NEW))
    alone = engine.generate(list(found.honest), max_new_tokens=NEW)
    for example, reply in zip(found.honest, alone, strict=True):
        assert not reply.decision.fired
        assert judge.correct(example, reply.text)


def test_nano_equals_the_transformers_engine_at_64_and_at_1(engine: Any) -> None:
    suites = ("jailbroken", "plain_unsafe", "lookalike", "ordinary")
    rows = [example for suite in suites for example in load_suite(suite, 16, 0)]
    want = nano().generate(rows, guard(), max_new_tokens=48, do_sample=False)
    assert {reply.decision.stage for reply in want if reply.decision.fired} >= {"stage2", "watch"}
    assert_same(engine.generate(rows, max_new_tokens=48), want)
    for i in range(0, 64, 8):
        assert_same(engine.generate([rows[i]], max_new_tokens=48), [want[i]])
