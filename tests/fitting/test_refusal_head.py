"""States for head training against hidden states run by hand; losses and heads against full
logits."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional

from safeswitch.core.errors import ContextLengthError, DataError, ModelError, SettingError
from safeswitch.fitting.head_data import ReplyStates, reply_ids, reply_states
from safeswitch.fitting.refusal_head import HeadData, HeadSettings, train_refusal_head
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import FullHead, LowRankHead
from tests.engines.slow import states_alone
from tests.engines.test_exactness import assert_untouched, snapshot
from tests.models.test_traits import SCALING, tiny_minicpm3
from tests.tiny import EOS, tiny_lm, tiny_tokenizer

MULTIPLIER = 0.25
PROMPTS = ["short", "a prompt that is a good deal longer", "one of middling size"]
REPLIES = ["I will not.", "No.", "That would be wrong, so I stop."]
REFUSALS = ["No, sorry.", "No, sorry!", "No, sorry.", "No, sorry!"]
ANSWERS = ["Take the train.", "Water it twice.", "Look at the sky.", "Peel the apple."]


@cache
def model(name: str) -> LanguageModel:
    if name == "minicpm3":
        return LanguageModel(tiny_minicpm3(), tiny_tokenizer(), model_id=name)
    return tiny_lm(name, **({"lm_head_multiplier": MULTIPLIER} if name == "falcon_h1" else {}))


@cache
def data(name: str) -> HeadData:
    lm = model(name)
    asked = [f"ZAP {i}" for i in range(4)], [f"ask {i}" for i in range(4)]
    return HeadData(
        refusals=reply_states(lm, asked[0], REFUSALS),
        refusals_validation=reply_states(lm, ["ZAP 8", "ZAP 9"], REFUSALS[:2]),
        safe=reply_states(lm, asked[1], ANSWERS),
        safe_validation=reply_states(lm, ["ask 8", "ask 9"], ANSWERS[2:]),
    )


@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt2", "opt", "bloom", "mistral_sliding", "mamba"]
)
def test_states_are_those_of_a_forward_pass_by_hand_at_exactly_the_replys_positions(
    name: str,
) -> None:
    lm = model(name)
    found = reply_states(lm, PROMPTS, REPLIES)
    for i, (prompt, reply) in enumerate(zip(lm.encode(PROMPTS), REPLIES, strict=True)):
        tokens = [*lm.tokenizer(reply)["input_ids"], EOS]
        states = states_alone(lm, [*prompt, *tokens])[-1]
        mine = found.rows == i
        assert found.targets[mine].tolist() == tokens
        torch.testing.assert_close(
            found.hidden[mine], states[len(prompt) - 1 : -1], atol=2e-5, rtol=1e-4
        )


def test_states_in_a_padded_batch_equal_those_alone() -> None:
    lm = model("gpt2")
    together, alone = (
        reply_states(lm, PROMPTS, REPLIES),
        reply_states(lm, PROMPTS, REPLIES, batch_size=1),
    )
    assert torch.equal(together.targets, alone.targets)
    assert torch.equal(together.rows, alone.rows)
    torch.testing.assert_close(together.hidden, alone.hidden, atol=2e-5, rtol=1e-4)


def test_targets_end_with_the_end_token() -> None:
    assert reply_ids(model("llama"), "No.")[-1] == EOS
    assert len(reply_ids(model("llama"), "No.")) == 4


def test_a_reply_given_as_token_ids_is_taken_as_it_is() -> None:
    lm = model("llama")
    ids = [*lm.tokenizer("No.")["input_ids"]]
    cut, whole = reply_states(lm, ["a"], [ids]), reply_states(lm, ["a"], ["No."])
    assert cut.targets.tolist() == ids
    torch.testing.assert_close(cut.hidden, whole.hidden[:3])


def test_a_long_prompt_needs_room_for_its_own_reply_only() -> None:
    lm = tiny_lm("llama", max_position_embeddings=40)
    longest = "x" * (40 - len(lm.encode(["x"])[0]) - 1)
    found = reply_states(lm, [longest, "x"], ["No", "a longer reply"])
    assert len(found) == 3 + 15
    with pytest.raises(
        ContextLengthError, match="prompt 0 has 38 tokens and its reply 4, but tiny-llama takes 40"
    ):
        reply_states(lm, [longest], ["No."])


def test_empty_and_missing_replies_are_refused() -> None:
    lm = model("llama")
    with pytest.raises(DataError, match="reply 1 is empty"):
        reply_states(lm, ["a", "b"], ["No.", " \n"])
    with pytest.raises(DataError, match="2 prompts but 1 replies"):
        reply_states(lm, ["a", "b"], ["No."])
    with pytest.raises(DataError, match="0 prompts but 0 replies"):
        reply_states(lm, [], [])


def logits_by_hand(lm: LanguageModel, states: ReplyStates, head: Any = None) -> torch.Tensor:
    """Full logits ``[m, V]`` at every position, soft cap and scales included; with ``head``, its
    formula written out."""
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    weight = lm.model.get_output_embeddings().weight.detach()
    hidden = states.hidden / SCALING if lm is model("minicpm3") else states.hidden
    raw = hidden @ weight.T
    if isinstance(head, LowRankHead):
        raw = raw + hidden @ (head.up @ head.down).T
    elif isinstance(head, FullHead):
        raw = hidden @ head.weight.T + head.bias
    if lm is model("falcon_h1"):
        raw = MULTIPLIER * raw
    return cap * torch.tanh(raw / cap) if cap else raw


@pytest.mark.parametrize("kind", ["low_rank", "full"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon_h1", "minicpm3"])
def test_the_losses_reported_are_those_of_full_logits_by_hand(name: str, kind: Any) -> None:
    lm, parts = model(name), data(name)
    result = train_refusal_head(
        lm, parts, HeadSettings(kind=kind, ranks=(2,), epochs=5, kl_weight=0.5, batch_tokens=16)
    )
    refusals, safe = parts.refusals_validation, parts.safe_validation
    entropy = functional.cross_entropy(logits_by_hand(lm, refusals, result.head), refusals.targets)
    base, new = (
        logits_by_hand(lm, safe).log_softmax(-1),
        logits_by_hand(lm, safe, result.head).log_softmax(-1),
    )
    divergence = (base.exp() * (base - new)).sum(-1).mean()
    assert result.cross_entropy == pytest.approx(float(entropy), rel=1e-4)
    assert result.kl == pytest.approx(float(divergence), rel=1e-3, abs=1e-5)
    each = functional.cross_entropy(
        logits_by_hand(lm, refusals, result.head), refusals.targets, reduction="none"
    )
    # openings of six tokens weigh five times as much, by hand
    per_reply = [each[refusals.rows == i] for i in range(2)]
    opening = torch.cat([one[:6] for one in per_reply])
    later = torch.cat([one[6:] for one in per_reply])
    weighted = (5 * opening.sum() + later.sum()) / (5 * len(opening) + len(later))
    assert len(later)
    assert result.loss == pytest.approx(float(weighted + 0.5 * divergence), rel=1e-4)


def test_a_model_that_does_something_else_to_its_heads_output_is_refused_by_name() -> None:
    lm, parts = tiny_lm("llama"), data("llama")
    lm.model.register_forward_hook(
        lambda module, args, output: output.__setitem__("logits", output.logits.square()) or output
    )
    with pytest.raises(ModelError, match="tiny-llama does something unknown to its head's output"):
        train_refusal_head(lm, parts, HeadSettings(epochs=1))


def test_the_soft_cap_of_gemma_really_bends_these_logits() -> None:
    lm = model("gemma2")
    states = data("gemma2").refusals_validation
    raw = states.hidden @ lm.model.get_output_embeddings().weight.detach().T
    assert float((raw - logits_by_hand(lm, states)).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        HeadSettings(ranks=(2,), epochs=60, batch_tokens=16),
        HeadSettings("full", epochs=60, learning_rate=1e-2),
    ],
    ids=["low rank", "full"],
)
@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(
    name: str, settings: HeadSettings
) -> None:
    lm, parts = model(name), data(name)
    before = snapshot(lm)
    result = train_refusal_head(lm, parts, settings)
    states = parts.refusals_validation
    base = float(functional.cross_entropy(logits_by_hand(lm, states), states.targets))
    assert result.cross_entropy < 0.5 * base
    assert_untouched(lm, before)
    assert not any(p.grad is not None for p in lm.model.parameters())


def test_the_embedding_of_a_tied_model_shares_nothing_with_the_refusal_head() -> None:
    lm = model("llama_tied")
    assert lm.parts.tied
    head = train_refusal_head(lm, data("llama_tied"), HeadSettings("full", epochs=1)).head
    assert isinstance(head, FullHead)
    assert head.weight.data_ptr() != lm.model.get_input_embeddings().weight.data_ptr()
    assert not head.weight.requires_grad


def test_the_same_seed_gives_the_same_head_and_another_seed_another() -> None:
    lm, parts = model("llama"), data("llama")
    one, two, other = (
        train_refusal_head(lm, parts, HeadSettings(ranks=(1,), epochs=3, seed=s)).head
        for s in (7, 7, 8)
    )
    assert isinstance(one, LowRankHead)
    assert isinstance(two, LowRankHead)
    assert isinstance(other, LowRankHead)
    assert torch.equal(one.up, two.up)
    assert torch.equal(one.down, two.down)
    assert not torch.equal(one.down, other.down)


def test_a_larger_rank_is_kept_only_when_it_beats_the_margin() -> None:
    lm, parts = model("llama"), data("llama")
    greedy = train_refusal_head(lm, parts, HeadSettings(ranks=(2, 1), epochs=15, margin=0.0))
    losses = greedy.tried
    assert list(losses) == ["rank 1", "rank 2"]
    assert losses["rank 2"] < losses["rank 1"]
    assert greedy.head.rank == 2  # type: ignore[attr-defined]
    gain = 1 - losses["rank 2"] / losses["rank 1"]
    strict = train_refusal_head(
        lm, parts, HeadSettings(ranks=(1, 2, 4), epochs=15, margin=min(1.0, gain + 0.01))
    )
    assert strict.head.rank == 1  # type: ignore[attr-defined]
    assert list(strict.tried) == ["rank 1", "rank 2"]


def test_a_low_rank_head_moves_only_tokens_that_occur_in_refusals() -> None:
    lm, parts = model("llama"), data("llama")
    head = train_refusal_head(lm, parts, HeadSettings(ranks=(2,), epochs=3)).head
    assert isinstance(head, LowRankHead)
    words = set(torch.cat([parts.refusals.targets, parts.refusals_validation.targets]).tolist())
    moved = set(head.up.any(1).nonzero().flatten().tolist())
    assert moved
    assert moved <= words


def test_an_opening_that_weighs_more_is_learnt_better() -> None:
    lm, parts = model("llama"), data("llama")
    found = []
    for weight in (1.0, 100.0):
        settings = HeadSettings(
            ranks=(1,), epochs=30, patience=30, opening=1, opening_weight=weight, batch_tokens=16
        )
        head = train_refusal_head(lm, parts, settings).head
        states = parts.refusals
        entropy = functional.cross_entropy(
            logits_by_hand(lm, states, head), states.targets, reduction="none"
        )
        found.append(float(entropy[states.places == 0].mean()))
    assert found[1] < found[0]


def test_places_count_from_the_start_of_each_reply() -> None:
    found = reply_states(model("llama"), PROMPTS, ["No.", "No", "Not."])
    assert found.places.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_an_untrained_full_head_is_the_base_head_whatever_beta(name: str, beta: float) -> None:
    lm, parts = model(name), data(name)
    head = train_refusal_head(
        lm, parts, HeadSettings("full", epochs=1, learning_rate=1e-8, beta=beta)
    ).head
    hidden = parts.safe.hidden
    raw = lm.parts.head(hidden).detach()
    torch.testing.assert_close(head.apply(raw, hidden), raw, atol=1e-4, rtol=1e-4)


def test_beta_is_carried_into_the_head_and_trained_parameters_are_counted() -> None:
    lm, parts = model("llama"), data("llama")
    low = train_refusal_head(lm, parts, HeadSettings(ranks=(2,), epochs=1, beta=0.3))
    assert low.head.beta == 0.3  # type: ignore[attr-defined]
    words = set(torch.cat([parts.refusals.targets, parts.refusals_validation.targets]).tolist())
    assert low.trained_parameters == 2 * (lm.hidden_size + len(words))
    assert (
        train_refusal_head(lm, parts, HeadSettings("full", epochs=1)).trained_parameters
        == (32 + 1) * lm.vocab_size
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lora"}, "kind must be one of 'low_rank', 'full'; got 'lora'"),
        ({"ranks": ()}, "ranks must be whole numbers of 1 or more"),
        ({"ranks": (0, 1)}, "ranks must be whole numbers of 1 or more"),
        ({"epochs": 0}, "epochs, patience and batch_tokens must be 1 or more"),
        ({"batch_tokens": 0}, "epochs, patience and batch_tokens must be 1 or more"),
        ({"beta": 1.2}, r"beta must lie in \[0.0, 1.0\]; got 1.2"),
        ({"margin": -0.1}, r"margin must lie in"),
        ({"kl_weight": -1.0}, "kl_weight must lie in"),
        ({"opening": -1}, "opening must lie in"),
        ({"opening_weight": 0.5}, "opening_weight must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must lie in"),
    ],
)
def test_head_settings_outside_their_limits_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        HeadSettings(**change)
