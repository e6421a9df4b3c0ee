"""What the halves of a block add is recorded as the block adds it, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from tests.activations.test_record import hook_count, rows
from tests.models.test_outputs import FOUND
from tests.tiny import tiny_lm
from torch import Tensor

from safeswitch.activations.reader import Reader
from safeswitch.activations.record import record
from safeswitch.activations.reread import reread
from safeswitch.core.types import PARTS, Output, Position, ReadPoint
from safeswitch.models.language_model import LanguageModel

NAMES = ("llama", "qwen2", "gemma2", "gemma3_text", "olmo2", "mixtral", "gpt_neox")


@torch.no_grad()
def by_hand(lm: LanguageModel, name: str, row: list[int]) -> dict[tuple[int, str], Tensor]:
    """Outputs ``[t, d]`` of one row alone, by hooks on the modules that the architecture names."""
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(at: tuple[int, str], output: Tensor | tuple[Tensor, ...]) -> None:
        seen[at] = (output if isinstance(output, Tensor) else output[0])[0].clone()

    handles = []
    for number, block in enumerate(lm.parts.blocks, 1):
        for part, module in zip(PARTS, FOUND[name], strict=True):
            at = (number, part)
            hook = lambda _m, _a, output, at=at: keep(at, output)  # noqa: E731
            handles.append(block.get_submodule(module).register_forward_hook(hook))
    lm.model(input_ids=torch.tensor([row]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_recorded_outputs_are_those_of_the_row_alone(name: str) -> None:
    lm = tiny_lm(name)
    sequences, lengths = rows()
    kinds = ("prompt_end", "pilot:2", "window:5")
    blocks = range(1, lm.num_layers + 1)
    points = [
        ReadPoint(b, Position.parse(k), part) for b in blocks for k in kinds for part in PARTS
    ]
    activations = record(lm, sequences, lengths, [*points, ReadPoint(1)], batch_tokens=90)
    for i, (row, p) in enumerate(zip(sequences, lengths, strict=True)):
        alone = by_hand(lm, name, row[: p + 2])
        for point in points:
            truth, state = alone[point.layer, point.part], activations.at(point)[i]
            if point.position.kind == "window":
                n = min(p, 5)
                expected = torch.cat([truth.new_zeros(5 - n, truth.shape[1]), truth[p - n : p]])
            else:
                expected = truth[min(p - 1 + point.position.index, len(truth) - 1)]
            torch.testing.assert_close(state, expected, rtol=2e-4, atol=2e-4)


def test_outputs_of_a_block_make_up_what_it_adds() -> None:
    lm = tiny_lm("gemma2")
    sequences, lengths = rows()
    points = [
        ReadPoint.parse(text)
        for text in ("1@pilot:1", "2@pilot:1", "2.attn@pilot:1", "2.mlp@pilot:1")
    ]
    before, after, attn, mlp = (
        record(lm, sequences, lengths, points).at(point) for point in points
    )
    torch.testing.assert_close(before + attn + mlp, after, rtol=1e-4, atol=1e-4)


def test_outputs_are_read_after_appended_tokens() -> None:
    lm = tiny_lm("llama")
    point = ReadPoint.parse("2.mlp@appended:0")
    found = reread(lm, [[9, 10, 11], [12]], [20, 21], [point]).at(point)
    for row, state in zip(([9, 10, 11, 20, 21], [12, 20, 21]), found, strict=True):
        torch.testing.assert_close(
            state, by_hand(lm, "llama", row)[2, "mlp"][-1], rtol=1e-4, atol=1e-4
        )


def test_a_reader_of_outputs_keeps_the_last_token_and_leaves_no_hook() -> None:
    lm = tiny_lm("llama")
    with Reader(lm, [Output(2, "mlp"), 3, Output(2, "attn")]) as reader, torch.no_grad():
        lm.model(input_ids=torch.tensor([[9, 10, 11]]))
        assert hook_count(lm) == 3
    assert hook_count(lm) == 0
    assert reader.sites == (3, Output(2, "attn"), Output(2, "mlp"))
    assert {tuple(state.shape) for state in reader.states.values()} == {(1, lm.hidden_size)}
    assert {state.untyped_storage().nbytes() for state in reader.states.values()} == {
        4 * lm.hidden_size
    }
