"""Recorded states are the model's own hidden states, whatever the batch, and reading leaves no
trace."""

from __future__ import annotations

import random

import pytest
import torch
from tests.tiny import NAMES, ODD, VOCAB, tiny_lm
from torch import Tensor

from safeswitch.activations.reader import Reader, keep_last
from safeswitch.activations.record import prompt_sequences, record
from safeswitch.core.errors import ActivationError, ContextLengthError, ModelError, SettingError
from safeswitch.core.types import Message, Position, ReadPoint
from safeswitch.models.language_model import LanguageModel

PROMPT, REPLY = (3, 37, 9, 21, 9, 28), (4, 2, 1, 6, 3, 5)


def rows(seed: int = 0) -> tuple[list[list[int]], list[int]]:
    """Six sequences of prompt and reply, longer and shorter than the tiny models' sliding window of
    16."""
    draw = random.Random(seed)
    return [
        [draw.randrange(8, VOCAB) for _ in range(p + r)] for p, r in zip(PROMPT, REPLY, strict=True)
    ], list(PROMPT)


def hook_count(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


@torch.no_grad()
def by_hand(lm: LanguageModel, row: list[int]) -> list[Tensor]:
    """``output_hidden_states`` of one row alone: num_layers + 1 tensors ``[t, d]``."""
    states = lm.model(
        input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False
    ).hidden_states
    if len(states) == lm.num_layers + 1 and type(lm.model).__name__ == "MambaForCausalLM":
        states = (lm.model.get_input_embeddings()(torch.tensor([row])), *states[:-2], states[-1])
    return [s[0] for s in states]


@pytest.mark.parametrize("name", NAMES + ODD)
def test_states_equal_manual_hidden_states_at_every_layer_and_position(name: str) -> None:
    lm = tiny_lm(name)
    sequences, lengths = rows()
    kinds = ("prompt_end", "pilot:0", "pilot:2", "window:5", "window", "mean:5", "mean")
    points = [
        ReadPoint(layer, Position.parse(k)) for layer in range(lm.num_layers + 1) for k in kinds
    ]
    activations = record(lm, sequences, lengths, points, batch_tokens=90)
    assert activations.points == tuple(points)
    for i, (row, p) in enumerate(zip(sequences, lengths, strict=True)):
        row = row[: p + 2]
        hidden = by_hand(lm, row)
        assert len(hidden) == lm.num_layers + 1
        for point in points:
            truth, state = hidden[point.layer], activations.at(point)[i]
            if point.position.kind == "window":
                n = min(p, point.position.index or p)
                assert (
                    activations.masks[point][i].tolist() == [False] * (len(state) - n) + [True] * n
                )
                assert not state[: len(state) - n].any()
                state, expected = state[len(state) - n :], truth[p - n : p]
            elif point.position.kind == "mean":
                expected = truth[p - min(p, point.position.index or p) : p].mean(0)
            else:
                expected = truth[min(p - 1 + point.position.index, len(row) - 1)]
            torch.testing.assert_close(state, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES + ODD)
def test_the_last_layer_is_what_the_head_works_on(name: str) -> None:
    lm = tiny_lm(name)
    seen: list[Tensor] = []
    handle = lm.parts.head.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with Reader(lm, [-1], keep=lambda hidden: hidden) as reader, torch.no_grad():
        lm.model(input_ids=torch.tensor([rows()[0][0]]))
    handle.remove()
    torch.testing.assert_close(reader.states[lm.num_layers], seen[0])


def test_batching_does_not_matter_and_order_is_kept() -> None:
    lm = tiny_lm("qwen3")
    sequences, lengths = rows()
    points = [ReadPoint(1), ReadPoint(3, Position("window", 4))]
    results = [record(lm, sequences, lengths, points, batch_tokens=n) for n in (1, 40, 10_000)]
    for other in results[1:]:
        for point in points:
            torch.testing.assert_close(other.at(point), results[0].at(point), rtol=1e-4, atol=1e-4)


def test_recurrent_models_are_not_padded() -> None:
    lm = tiny_lm("mamba")
    widths: list[tuple[int, ...]] = []
    assert not lm.traits.pads_left
    handle = lm.parts.backbone.register_forward_pre_hook(
        lambda _m, _a, kwargs: widths.append(tuple(kwargs["attention_mask"].sum(1).tolist())),
        with_kwargs=True,
    )
    record(lm, *rows(), [ReadPoint(2)])
    handle.remove()
    assert all(len(set(w)) == 1 for w in widths)
    assert sorted(len(w) for w in widths) == [1, 1, 1, 1, 2]


def test_the_head_is_never_run_and_nothing_after_the_last_read_token() -> None:
    lm = tiny_lm()
    calls: list[str] = []
    widths: list[int] = []
    assert lm.traits.pads_left
    handles = [
        lm.parts.head.register_forward_hook(lambda *_: calls.append("head")),
        lm.parts.blocks[0].register_forward_pre_hook(
            lambda _m, args: widths.append(args[0].shape[1])
        ),
    ]
    record(lm, *rows(), [ReadPoint(1)])
    for handle in handles:
        handle.remove()
    assert calls == []
    assert max(widths) == max(PROMPT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_models_and_results(dtype: torch.dtype) -> None:
    lm = tiny_lm()
    exact = record(lm, *rows(), [ReadPoint(2)]).at(ReadPoint(2))
    lm.model.to(dtype)
    kept = record(lm, *rows(), [ReadPoint(2)]).at(ReadPoint(2))
    assert kept.dtype == dtype
    assert torch.nn.functional.cosine_similarity(kept.float(), exact).min() > 0.99
    assert (
        record(lm, *rows(), [ReadPoint(2)], dtype=torch.float64).at(ReadPoint(2)).dtype
        == torch.float64
    )


def test_hooks_are_gone_after_success_exception_and_failure_half_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_lm()
    before = hook_count(lm)
    record(lm, *rows(), [ReadPoint(1), ReadPoint(3)])
    assert hook_count(lm) == before
    with pytest.raises(RuntimeError, match="boom with 3 hooks"), Reader(lm, [0, 1, -1]):
        raise RuntimeError(f"boom with {hook_count(lm) - before} hooks")
    assert hook_count(lm) == before

    def refuse(*_args: object) -> None:
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(lm.parts.backbone, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no hooks"):
        Reader(lm, [0, 1, 2, 3]).__enter__()
    assert hook_count(lm) == before


def test_a_model_that_fails_midway_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    assert lm.traits.pads_left
    before = hook_count(lm)
    monkeypatch.setattr(lm.parts.blocks[1], "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(lm, *rows(), [ReadPoint(1)])
    assert hook_count(lm) == before


def test_readers_nest_and_one_reader_opens_once() -> None:
    lm = tiny_lm()
    ids = torch.tensor([[9, 10, 11]])
    with (
        Reader(lm, [1, -2, 1]) as outer,
        Reader(lm, [1], keep=lambda h: h.mean(1)) as inner,
        torch.no_grad(),
    ):
        lm.model(input_ids=ids)
        with pytest.raises(SettingError, match="open already"):
            outer.__enter__()
    assert outer.sites == (1, 2)
    assert set(outer.states) == {1, 2}
    assert outer.states[1].shape == inner.states[1].shape == (1, 32)


def test_what_is_kept_does_not_hold_on_to_the_layer_output() -> None:
    lm = tiny_lm()
    with Reader(lm, [1, 3], keep={1: keep_last, 3: lambda h: h[:, -2:]}) as reader, torch.no_grad():
        lm.model(input_ids=torch.tensor([[9, 10, 11, 12]]))
    assert reader.states[1].untyped_storage().nbytes() == 32 * 4
    assert reader.states[3].untyped_storage().nbytes() == 2 * 32 * 4


def test_hidden_states_of_another_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    monkeypatch.setattr(lm.parts.blocks[1], "forward", lambda hidden, **_: hidden[None])
    with pytest.raises(ModelError, match=r"layer 2 does not hold hidden states"), Reader(lm, [2]):
        lm.model(input_ids=torch.tensor([[9, 10]]))


def test_states_that_are_not_finite_are_named_with_point_and_row() -> None:
    lm = tiny_lm()
    sequences, lengths = rows()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[sequences[3][lengths[3] - 1]] = float("nan")
    with pytest.raises(
        ActivationError, match=r"states at 2@prompt_end are not finite \(row 3 of 6"
    ):
        record(lm, sequences, lengths, [ReadPoint(2)])


def test_a_narrow_dtype_that_overflows_is_named() -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.mul_(1e7)
    with pytest.raises(ActivationError, match=r"float16\); a wider dtype"):
        record(lm, *rows(), [ReadPoint(0)], dtype=torch.float16)


def test_wrong_calls_are_refused() -> None:
    lm = tiny_lm()
    sequences, lengths = rows()
    point = [ReadPoint(1)]
    for args, text in (
        (([], [], point), "one sequence or more"),
        ((sequences, lengths, []), "one read point or more"),
        ((sequences, lengths[:2], point), "2 lengths"),
        ((sequences, [99, *lengths[1:]], point), r"must lie in 1\.\.7"),
        ((sequences, [0, *lengths[1:]], point), "must lie in"),
        ((sequences, lengths, [ReadPoint(4)]), "layer 4 does not"),
        ((sequences, lengths, [ReadPoint(-1)]), "resolved layer"),
    ):
        with pytest.raises(SettingError, match=text):
            record(lm, *args)
    for extra in ({"batch_tokens": 0}, {"texts": ["a"]}):
        with pytest.raises(SettingError):
            record(lm, sequences, lengths, point, **extra)  # type: ignore[arg-type]
    with pytest.raises(ActivationError, match="sequence 0 has no reply token"):
        record(lm, sequences, [len(s) for s in sequences], [ReadPoint(1, Position("pilot", 1))])
    with pytest.raises(ContextLengthError, match="sequence 0 has 600 tokens"):
        record(lm, [[9] * 600], [600], point)


def test_prompts_become_sequences_and_texts() -> None:
    lm = tiny_lm()
    talk = (Message("system", "s"), Message("user", "u"))
    sequences, lengths, texts = prompt_sequences(lm, ["hi", talk])
    assert lengths == [len(s) for s in sequences]
    assert texts == ("hi", "s\nu")
    calls: list[tuple[int, int]] = []
    activations = record(
        lm,
        sequences,
        lengths,
        [ReadPoint(1)],
        texts=texts,
        batch_tokens=1,
        progress=lambda a, b: calls.append((a, b)),
    )
    assert activations.texts == texts
    assert calls == [(1, 2), (2, 2)]


def test_recorded_states_can_be_learned_from() -> None:
    states = record(tiny_lm(), *rows(), [ReadPoint(1)]).at(ReadPoint(1))
    weight = torch.zeros(32, requires_grad=True)
    (states @ weight).sum().backward()
    assert weight.grad is not None
