"""Conversations in a real vLLM engine: a refused turn, its pages in the prefix cache, and what comes
after it."""

from __future__ import annotations

import pytest

from safeswitch.nano import judge, weights_path
from tests.engines.vllm_made import needs_vllm, vllm_options
from tests.nano.made_talks import NEW, guard, talks

pytestmark = [needs_vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_after_a_refused_turn_honest_requests_are_answered_as_by_the_model_itself() -> None:
    from safeswitch.engines.vllm.engine import VLLMEngine

    found = talks()
    with VLLMEngine(weights_path(), guard(), **vllm_options(max_model_len=512)) as engine:
        refused = engine.generate(list(found.refused), max_new_tokens=56)
        assert all(reply.decision.fired for reply in refused)
        # the refused turn's prompt, and its pilot tokens, are in the prefix cache now
        found.check(engine.generate(list(found.conversations), max_new_tokens=NEW))
        alone = engine.generate(list(found.honest), max_new_tokens=NEW)
    for example, reply in zip(found.honest, alone, strict=True):
        assert not reply.decision.fired
        assert judge.correct(example, reply.text)
