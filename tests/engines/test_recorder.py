"""States read while the untouched model replies are those of a teacher-forced reading afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from safeswitch.activations.record import record
from safeswitch.core.errors import SettingError
from safeswitch.core.types import Output, Position, ReadPoint, Reply
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.models.language_model import LanguageModel
from tests.tiny import NAMES, tiny_lm

PROMPTS = ["a", "a long river stone cloud", "ZAP it", "b c d", "river", "it a b"]
POINTS = tuple(
    ReadPoint(layer, position)
    for layer in (0, 1, 2)
    for position in (
        Position("prompt_end"),
        Position("window", 4),
        Position("window", 0),
        Position("mean", 4),
        Position("mean", 0),
        *(Position("pilot", k) for k in (0, 1, 3, 6)),
    )
)
MLP = ReadPoint(Output(1, "mlp"), Position("pilot", 2))


def ending_early(name: str) -> LanguageModel:
    """A model some of whose replies end before others do: their tokens are made end tokens."""
    lm = tiny_lm(name)
    replies = TransformersEngine(lm).generate(PROMPTS, max_new_tokens=8, do_sample=False)
    lm.model.generation_config.eos_token_id = [replies[0].token_ids[2], replies[1].token_ids[4]]
    return lm


def read_after(
    lm: LanguageModel, replies: Sequence[Reply], points: Sequence[ReadPoint]
) -> dict[ReadPoint, torch.Tensor]:
    rows = lm.encode(PROMPTS)
    whole = [[*row, *r.token_ids[:6]] for row, r in zip(rows, replies, strict=True)]
    return dict(record(lm, whole, [len(row) for row in rows], points, dtype=torch.float32).states)


@pytest.mark.parametrize("new", [1, 3, 6, 8])
@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_a_reading_afterwards(name: str, new: int) -> None:
    lm = ending_early(name)
    engine = TransformersEngine(lm, batch_size=4)
    told: list[int] = []
    points = (*POINTS, MLP) if lm.outputs.modules else POINTS
    replies, found = engine.collect(PROMPTS, points, max_new_tokens=new, progress=told.append)
    plain = engine.generate(PROMPTS, max_new_tokens=new, do_sample=False)
    assert [(r.token_ids, r.finish_reason) for r in replies] == [
        (r.token_ids, r.finish_reason) for r in plain
    ]
    expected = read_after(lm, replies, points)
    assert sum(told) == len(PROMPTS)
    for point in points:
        torch.testing.assert_close(found.states[point], expected[point], atol=2e-4, rtol=1e-3)


def test_some_replies_do_end_before_others() -> None:
    lm = ending_early("llama")
    replies = TransformersEngine(lm).generate(PROMPTS, max_new_tokens=8, do_sample=False)
    assert len({len(r.token_ids) for r in replies}) > 1


@pytest.mark.parametrize(("prompts", "points"), [([], POINTS), (PROMPTS, ())])
def test_nothing_to_read_is_an_error(prompts: Sequence[str], points: Sequence[ReadPoint]) -> None:
    with pytest.raises(SettingError, match="or more"):
        TransformersEngine(tiny_lm("llama")).collect(prompts, points, max_new_tokens=2)
