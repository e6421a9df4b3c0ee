"""Each method's formula against an independent computation: by hand, by another library, or by a
forward pass of its own."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from torch import Tensor

from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.errors import ArtifactError, SettingError
from safeswitch.core.types import Position, ReadPoint
from safeswitch.engines.transformers.batch import late_lengths
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.steer import acting, changed
from safeswitch.fitting.head_data import reply_states
from safeswitch.methods.cast import COMPLIANCE, REFUSALS, suffix_differences
from safeswitch.methods.checks import ASK_INPUT
from safeswitch.methods.directions import (
    best_run,
    keep_largest,
    mean_difference,
    pair_accuracy,
    pair_directions,
    refusal_alignment,
    refusal_tokens,
)
from safeswitch.methods.fitting import surely_safe
from safeswitch.methods.frames import Exemplars
from safeswitch.methods.masks import importance, merged, patched, retained, top_mask
from safeswitch.methods.patch import gradients, head_gradient
from safeswitch.methods.reroute import _distance, _likeness, adapted, factors
from safeswitch.methods.resolve import resolve
from safeswitch.methods.scans import Scans
from safeswitch.methods.stair import Beam, RewardModel, reward
from safeswitch.models.chat import ChatEncoder
from safeswitch.probers.appended import (
    APPENDED,
    AppendingProber,
    LikelihoodProber,
    TransitionProber,
)
from safeswitch.probers.base import prober_from_state
from safeswitch.probers.condition import (
    WHOLE,
    Condition,
    ConditionProber,
    fit_condition,
    parse_rule,
    similarity,
)
from safeswitch.probers.ensemble import EnsembleProber
from safeswitch.switch.actuators.base import Canned, LowRankHead, Steering
from safeswitch.switch.actuators.heads import EarlyHead, SoftHead
from safeswitch.switch.actuators.vectors import load_vectors, save_vectors
from safeswitch.switch.actuators.weights import Adapter, Weights
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch
from tests.engines.slow import Projection, prompt_point, random_head
from tests.methods.test_contract import ASKED, PARTS, SETTINGS, engine, obeys
from tests.tiny import tiny_lm

LM = tiny_lm("llama")
D, TOP = LM.hidden_size, LM.num_layers
DRAW = torch.Generator().manual_seed(1)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW)


def hidden(row: list[int], layer: int) -> Tensor:
    """States of one sequence at a layer, by a plain forward pass, ``[t, d]``."""
    with torch.no_grad():
        out: Tensor = LM.model(
            input_ids=torch.tensor([row]), output_hidden_states=True
        ).hidden_states[layer][0]
    return out


def logits(row: list[int]) -> Tensor:
    with torch.no_grad():
        out: Tensor = LM.model(input_ids=torch.tensor([row])).logits[0]
    return out


ROWS = LM.encode(ASKED)


def test_rereading_is_a_forward_pass_over_the_longer_sequence() -> None:
    appended = [40, 41, 42]
    points = [ReadPoint(2, APPENDED), ReadPoint(TOP, Position("nll", 2)), ReadPoint(1)]
    found = reread(LM, ROWS, appended, points)
    assert set(found.states) == set(points[:2])
    for i, row in enumerate(ROWS):
        torch.testing.assert_close(
            found.at(points[0])[i], hidden([*row, *appended], 2)[-1], atol=2e-5, rtol=1e-4
        )
        odds = logits([*row, *appended]).log_softmax(-1)
        nll = -(odds[len(row), 41] + odds[len(row) + 1, 42]) / 2
        torch.testing.assert_close(found.at(points[1])[i, 0], nll, atol=2e-5, rtol=1e-4)
    with pytest.raises(SettingError, match=r"1\.\.3"):
        reread(LM, ROWS, appended, [ReadPoint(TOP, Position("nll", 4))])


def test_a_note_scores_as_published() -> None:
    point = ReadPoint(TOP, Position("nll", 4))
    scores = LikelihoodProber(TOP).score(
        Activations({point: torch.tensor([[0.0], [2.0], [5.0], [float("nan")]])})
    )
    assert scores[:3].tolist() == pytest.approx([2 / (1 + math.exp(0.5 * x)) for x in (0, 2, 5)])
    assert scores[3].isnan()


def test_transitions_are_compared_by_their_mean_cosine() -> None:
    prober = TransitionProber([1, 2])
    activations = Activations({p: rand(6, D) for p in prober.points})
    truth = torch.tensor([True, True, True, False, False, False])
    prober.fit(activations, truth)
    for i in range(6):
        cosines = []
        for layer in (1, 2):
            moves = (
                (activations.at(ReadPoint(layer)) - activations.at(ReadPoint(layer, APPENDED)))
                .double()
                .numpy()
            )
            mean = moves[:3].mean(0)
            cosines.append(moves[i] @ mean / np.linalg.norm(moves[i]) / np.linalg.norm(mean))
        assert float(prober.score(activations)[i]) == pytest.approx(
            (1 + np.mean(cosines)) / 2, abs=1e-5
        )
    again = prober_from_state(*AppendingProber(prober, [5, 6]).state())
    assert again.appended == (5, 6)
    torch.testing.assert_close(again.score(activations), prober.score(activations))


def test_scans_reads_its_transition_behind_sure_when_it_runs() -> None:
    method = Scans(SETTINGS, obeys)
    switch = method.prepare(engine(), PARTS)
    assert switch.gate.stage1 is not None
    inner = switch.gate.stage1.prober.inner  # type: ignore[attr-defined]
    sure = LM.tokenizer("Sure", add_special_tokens=False)["input_ids"]
    replies = engine().generate(ASKED, switch, max_new_tokens=3, do_sample=False)
    for row, reply in zip(ROWS, replies, strict=True):
        moves = [
            hidden(row, layer)[-1] - hidden([*row, *sure], layer)[-1] for layer in inner.layers
        ]
        cosines = [
            torch.cosine_similarity(m, r, dim=0)
            for m, r in zip(moves, inner.reference_, strict=True)
        ]
        assert reply.decision.scores["stage1"] == pytest.approx(
            (1 + float(torch.stack(cosines).mean())) / 2, abs=1e-4
        )


def test_two_sides_lead_each_row_its_own_way_and_leave_those_in_between() -> None:
    prober = Projection(prompt_point(LM, 1), D)
    scores = prober.score(
        Activations({prompt_point(LM, 1): torch.stack([hidden(row, 1)[-1] for row in ROWS])})
    )
    order = scores.sort().values
    high, low = float(order[2] + order[3]) / 2, float(order[0] + order[1]) / 2
    steering = Steering((2,), 3 * rand(1, D), 1.5, relief=-2.0, relief_below=low, where="reply")
    on = TransformersEngine(LM)
    replies = on.generate(
        ASKED, Switch(Gate(stage1=Stage(prober, high)), steering), max_new_tokens=6, do_sample=False
    )
    for prompt, score, reply in zip(ASKED, scores.tolist(), replies, strict=True):
        strength = 1.5 if score > high else -2.0 if score < low else 0.0
        always = Switch(Gate(always=True), replace(steering, strength=strength, relief=0.0))
        assert (
            reply.token_ids
            == on.generate([prompt], always, max_new_tokens=6, do_sample=False)[0].token_ids
        )
        assert reply.decision.fired == (score > high)
        assert reply.decision.actuator == ("steering" if strength else "none")
    assert len({r.decision.actuator + str(r.decision.fired) for r in replies}) == 3


def test_steering_from_the_reply_on_leaves_the_prompts_states_alone() -> None:
    """By hand: the pushed states are written into a plain run of the blocks' outputs, position by
    position."""
    vector, row = 2 * rand(D), ROWS[0]
    last = len(row) - 1

    def push(module: Any, args: Any, output: Any) -> Any:
        moved = (output[0] if isinstance(output, tuple) else output).clone()
        moved[:, last:] += 0.5 * vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    grown = list(row)
    handle = LM.parts.blocks[1].register_forward_hook(push)
    try:
        for _ in range(5):
            grown.append(int(logits(grown)[-1].argmax()))
    finally:
        handle.remove()
    switch = Switch(Gate(always=True), Steering((2,), vector[None], 0.5, where="reply"))
    reply = TransformersEngine(LM).generate(
        [ASKED[0]], switch, max_new_tokens=5, do_sample=False, eos_token_id=-1
    )[0]
    assert list(reply.token_ids) == grown[len(row) :]


def test_pair_directions_are_the_uncentred_first_component_towards_the_unsafe_side() -> None:
    differences = rand(3, 20, D) + 0.5
    found = pair_directions(differences)
    for layer in range(3):
        svd = (
            TruncatedSVD(1, algorithm="arpack", random_state=0)
            .fit(differences[layer].numpy())
            .components_[0]
        )
        assert abs(float(found[layer] @ torch.from_numpy(svd).float())) == pytest.approx(
            1.0, abs=1e-3
        )
        assert float(found[layer] @ differences[layer].mean(0)) > 0
    right = [float((differences[i] @ found[i] > 0).float().mean()) for i in range(3)]
    torch.testing.assert_close(pair_accuracy(found, differences), torch.tensor(right))
    kept = keep_largest(found, 0.1)
    assert (kept != 0).sum(1).tolist() == [round(0.1 * D)] * 3
    assert torch.equal(kept[kept != 0], found[kept != 0])
    assert (
        found.abs()[kept == 0]
        .reshape(3, -1)
        .amax(1)
        .lt(kept.abs().masked_fill(kept == 0, 9).amin(1))
        .all()
    )


def test_words_of_refusal_are_found_by_the_head() -> None:
    weight = LM.parts.head.weight.detach()
    token = refusal_tokens(LM)[0]
    along = refusal_alignment(LM, torch.stack([weight[token], -weight[token]]))
    raw = weight @ weight[token]
    expected = ((raw - raw.mean()) / raw.std())[list(refusal_tokens(LM))].mean()
    torch.testing.assert_close(along, torch.stack([expected, -expected]))


def test_a_condition_is_the_cosine_of_a_state_and_its_projection() -> None:
    states, vector = rand(5, D), rand(D)
    for h, found in zip(states, similarity(states, vector), strict=True):
        projected = torch.outer(vector, vector) @ h / (vector @ vector)
        torch.testing.assert_close(
            found, torch.cosine_similarity(h, projected, dim=0), atol=1e-4, rtol=0
        )
    truth = torch.arange(40) % 2 == 0
    apart = rand(40, D) + torch.where(truth, 3.0, 0.0)[:, None]
    fitted = fit_condition("x", 1, apart, truth)
    middle = (apart[truth].mean(0) + apart[~truth].mean(0)) / 2
    first = (
        TruncatedSVD(1, algorithm="arpack", random_state=0)
        .fit((apart - middle).numpy())
        .components_[0]
    )
    assert abs(float(fitted.vector @ torch.from_numpy(first).float())) == pytest.approx(
        1.0, abs=1e-3
    )
    f1 = {
        (bar, above): 2 * int((told & truth).sum()) / (int(told.sum()) + int(truth.sum()))
        for bar, above in product(similarity(apart, fitted.vector).tolist(), (True, False))
        for told in [(similarity(apart, fitted.vector) > bar) == above]
    }
    told = fitted.margin(apart) > 0
    assert (
        2 * int((told & truth).sum()) / (int(told.sum()) + int(truth.sum()))
        >= max(f1.values()) - 1e-9
    )


@pytest.mark.parametrize(
    "rule", ["a", "not a", "a and b", "a or b", "a and not (b or c)", "not a or b and c"]
)
def test_a_rule_holds_where_python_says_so(rule: str) -> None:
    margin = parse_rule(rule, ["a", "b", "c"])
    for truth in product((False, True), repeat=3):
        sizes = {n: torch.tensor([0.3 if t else -0.2]) for n, t in zip("abc", truth, strict=True)}
        assert bool(margin(sizes)[0] > 0) == eval(rule, dict(zip("abc", truth, strict=True)))


def test_conditions_join_through_a_file_and_odd_rules_are_refused() -> None:
    conditions = [Condition("a", 1, rand(D), 0.1, True), Condition("b", 2, rand(D), 0.2, False)]
    prober = ConditionProber.of(conditions, "a and b")
    activations = Activations(
        {ReadPoint(x, WHOLE): rand(4, 3, D) for x in (1, 2)},
        {ReadPoint(x, WHOLE): torch.ones(4, 3).bool() for x in (1, 2)},
    )
    means = [activations.at(ReadPoint(x, WHOLE)).mean(1) for x in (1, 2)]
    both = torch.minimum(
        similarity(means[0], conditions[0].vector) - 0.1,
        0.2 - similarity(means[1], conditions[1].vector),
    )
    torch.testing.assert_close(prober.score(activations), (1 + both) / 2)
    torch.testing.assert_close(
        prober_from_state(*prober.state()).score(activations), prober.score(activations)
    )
    for rule, message in (
        ("a and d", "unknown condition 'd'; known: a, b"),
        ("a +", "names joined"),
        ("a > b", "only names"),
    ):
        with pytest.raises(SettingError, match=message):
            ConditionProber.of(conditions, rule)


def test_an_ensembles_members_are_logistic_readers_of_their_own_subspaces() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    points = [ReadPoint(1), ReadPoint(2)]
    truth = torch.arange(60) % 2 == 0
    activations = Activations(
        {p: rand(60, D) + torch.where(truth, 0.4, 0.0)[:, None] for p in points}
    )
    prober = EnsembleProber(points, members=5, size=4).fit(activations, truth, seed=3)
    odds = []
    for place, basis in zip(prober.places_.tolist(), prober.bases_, strict=True):
        torch.testing.assert_close(basis @ basis.T, torch.eye(4), atol=1e-5, rtol=0)
        seen = (activations.at(points[place]) @ basis.T).numpy()
        scaled = StandardScaler().fit_transform(seen)
        fitted = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-8, max_iter=1000).fit(
            scaled, truth.numpy()
        )
        odds.append(fitted.decision_function(scaled))
    np.testing.assert_allclose(
        torch.logit(prober.score(activations)).numpy(), np.median(odds, 0), atol=2e-2
    )
    torch.testing.assert_close(
        prober_from_state(*prober.state()).score(activations), prober.score(activations)
    )


def test_a_soft_head_is_the_interpolated_head_of_each_rows_score() -> None:
    prober, head = Projection(prompt_point(LM, 1), D), random_head(LM)
    on = TransformersEngine(LM)
    switch = Switch(Gate(stage1=Stage(prober, 0.0)), SoftHead(head, 0.2, 0.9))
    replies = on.generate(ASKED, switch, max_new_tokens=5, do_sample=False)
    for prompt, reply in zip(ASKED, replies, strict=True):
        share = min(1.0, max(0.0, (reply.decision.scores["stage1"] - 0.2) / 0.7))
        fixed = Switch(Gate(always=True), replace(head, beta=share * head.beta))
        assert (
            reply.token_ids
            == on.generate([prompt], fixed, max_new_tokens=5, do_sample=False)[0].token_ids
        )


@pytest.mark.parametrize("late", [False, True])
def test_an_early_head_mixes_its_first_tokens_and_then_leaves_the_model_to_itself(
    late: bool,
) -> None:
    """Also where a row fires late: its own first tokens count, not the batch's."""
    head = random_head(LM)
    early = EarlyHead(head, tokens=2, alpha=3.0, common=3)
    on = TransformersEngine(LM)
    gate = (
        Gate(stage2=Stage(Projection(ReadPoint(1, Position("pilot", 2)), D), 0.0))
        if late
        else Gate(always=True)
    )
    replies = on.generate(
        ASKED, Switch(gate, early), max_new_tokens=6, do_sample=False, eos_token_id=-1
    )
    for row, reply in zip(ROWS, replies, strict=True):
        grown = list(row)
        for step in range(6):
            found, state = logits(grown)[-1:], hidden(grown, TOP)[-1:]
            grown.append(int((early.apply(found, state) if step < 2 else found).argmax()))
        assert list(reply.token_ids) == grown[len(row) :]
        assert reply.decision.fired


def test_masks_keep_what_is_important_and_differ_as_sets() -> None:
    weights, slopes = {"w": rand(3, 4), "v": rand(5)}, {"w": rand(3, 4), "v": rand(5)}
    scores = importance(weights, slopes)
    a = top_mask(scores, 0.25)
    for name in weights:
        flat = (weights[name] * slopes[name]).abs().flatten()
        count = max(1, round(0.25 * len(flat)))
        assert set(a[name].flatten().nonzero().flatten().tolist()) == set(
            flat.argsort(descending=True)[:count].tolist()
        )
    b = {"w": rand(3, 4) > 0, "v": rand(5) > 0}
    one, two = {"w": rand(3, 4), "v": rand(5)}, {"w": rand(3, 4), "v": rand(5)}
    found = patched(one, a, two, b, 2.0, 0.5)
    for name, value in found.items():
        for place in np.ndindex(*value.shape):
            in_a, in_b = bool(a[name][place]), bool(b[name][place])
            expected = (
                2 * one[name][place]
                if in_a and not in_b
                else 0.5 * two[name][place]
                if in_b and not in_a
                else 0.0
            )
            assert float(value[place]) == pytest.approx(float(expected))
    kept = retained({"w": torch.ones(100, 100)}, 0.3, seed=0)["w"]
    assert abs(float(kept.mean()) - 0.3) < 0.02
    torch.testing.assert_close(
        merged({"x": one, "y": two}, {"x": 0.2, "y": 0.3})["w"], 0.2 * one["w"] + 0.3 * two["w"]
    )
    with pytest.raises(SettingError, match="not alike: v"):
        patched(one, a, {"w": two["w"]}, b)


def test_gradients_are_those_of_autograd_and_leave_no_flag_behind() -> None:
    pairs = [(e, "No, sorry.") for e in PARTS["train"][:2]]
    found = gradients(LM, pairs, ("lm_head.weight",))["lm_head.weight"]
    assert not any(p.grad is not None for p in LM.model.parameters())
    states = reply_states(LM, [e for e, _ in pairs], [r for _, r in pairs])
    torch.testing.assert_close(head_gradient(LM, states), found, atol=1e-5, rtol=1e-3)
    weight = LM.parts.head.weight.detach().clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(states.hidden @ weight.T, states.targets).backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-5, rtol=1e-3)


def test_changed_weights_are_there_inside_and_bit_for_bit_back_outside() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    own = LM.model.get_parameter(name)
    before, delta = own.detach().clone(), rand(*own.shape) * (rand(*own.shape) > 1)

    def inside() -> None:
        with changed(LM, Weights.of({name: delta}, 0.5)):
            torch.testing.assert_close(own.detach(), before + 0.5 * delta)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside()
    assert torch.equal(own, before)
    with (
        pytest.raises(SettingError, match="no parameter 'other'"),
        changed(LM, Weights.of({"other": delta})),
    ):
        pass


def test_an_adapter_is_what_peft_computes() -> None:
    lm = tiny_lm("llama")
    with torch.no_grad(), adapted(lm, 2, seed=0) as model:
        for module in model.modules():
            if hasattr(module, "lora_B"):
                module.lora_B["default"].weight.copy_(
                    0.2 * torch.randn(module.lora_B["default"].weight.shape, generator=DRAW)
                )
        expected = lm.model(input_ids=torch.tensor([ROWS[0]])).logits
        adapter = Adapter(factors(lm, model))
    assert len(adapter.factors) == 7 * lm.num_layers
    plain = lm.model(input_ids=torch.tensor([ROWS[0]])).logits
    with torch.no_grad(), acting(lm, adapter, [1.0]):
        torch.testing.assert_close(
            lm.model(input_ids=torch.tensor([ROWS[0]])).logits, expected, atol=1e-4, rtol=1e-4
        )
    assert (plain - expected).abs().max() > 0.01


def test_rerouting_turns_harmful_states_away_and_keeps_the_others() -> None:
    lm = tiny_lm("llama")
    method = resolve(
        "reroute", SETTINGS, obeys, steps=200, batch=6, requests=16, learning_rate=5e-3
    )
    harmful, kept = method._replies(TransformersEngine(lm), PARTS)  # type: ignore[attr-defined]
    adapter = method.prepare(TransformersEngine(lm), PARTS).actuator

    def likeness(pairs: Any) -> float:
        found = []
        for prompt, reply in pairs:
            ids = torch.tensor([[*prompt, *reply]])
            with torch.no_grad():
                before = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[2][
                    0, len(prompt) :
                ]
                with acting(lm, adapter, [1.0]):
                    after = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[2][
                        0, len(prompt) :
                    ]
            found.append(float(torch.cosine_similarity(before, after, dim=-1).mean()))
        return sum(found) / len(found)

    assert likeness(harmful) < 0.2 < 0.85 < likeness(kept)


def test_reroutings_losses_are_a_cosine_and_a_distance_in_units_of_the_state() -> None:
    before, after = rand(2, 5, 6), rand(2, 5, 6)
    pairs = [
        (b, a)
        for one, other in zip(before, after, strict=True)
        for b, a in zip(one, other, strict=True)
    ]
    cosines = [float(b @ a / (b.norm() * a.norm())) for b, a in pairs]
    assert _likeness(before, after) == pytest.approx(
        sum(max(0.0, c) for c in cosines) / 10, abs=1e-6
    )
    assert _distance(before, after) == pytest.approx(
        sum(float((b - a).norm() / b.norm()) for b, a in pairs) / 10, abs=1e-6
    )
    torch.testing.assert_close(_distance(100 * before, 100 * after), _distance(before, after))


def test_the_run_of_layers_is_the_neighbours_with_the_highest_sum() -> None:
    values = rand(9).tolist()
    for length in (1, 3, 9, 20):
        sums = {i: sum(values[i : i + min(length, 9)]) for i in range(9 - min(length, 9) + 1)}
        found = best_run(values, length)
        assert (len(found), sums[found.start]) == (min(length, 9), max(sums.values()))
    assert best_run([1.0, 1.0, 1.0], 2) == range(2)


def test_a_difference_of_means_is_taken_layer_by_layer() -> None:
    states, unsafe = rand(2, 7, 4), torch.tensor([1, 0, 0, 1, 0, 1, 0]).bool()
    for layer, found in enumerate(mean_difference(states, unsafe)):
        rows = states[layer].double().numpy()
        bad, good = rows[[0, 3, 5]].sum(0) / 3, rows[[1, 2, 4, 6]].sum(0) / 4
        assert found.tolist() == pytest.approx((bad - good).tolist(), abs=1e-6)


def test_surely_safe_is_below_all_but_a_share_of_the_unsafe_scores() -> None:
    prober = Projection(ReadPoint(TOP), D, seed=3)
    stage1 = Gate(stage1=Stage(prober, 0.5))
    unsafe = [e for e in PARTS["validation"] if e.unsafe]
    scores = sorted(
        float(torch.sigmoid(hidden(row, TOP)[-1] @ prober.direction)) for row in LM.encode(unsafe)
    )
    for miss in (0.0, 0.1, 0.5):
        found = surely_safe(engine(), stage1, PARTS, miss)
        assert sum(s < found - 1e-5 for s in scores) <= miss * len(scores)
        assert min(abs(found - s) for s in scores) < 1e-5
    assert surely_safe(engine(), Gate(), PARTS, 0.1) == 0.0


def test_behaviour_is_refusal_less_compliance_behind_the_same_prompt() -> None:
    few = {**PARTS, "train": PARTS["train"][:3]}
    found = suffix_differences(LM, few, (1, 2), 3)
    texts = {side: [LM.tokenizer(t, add_special_tokens=False)["input_ids"] for t in given]
             for side, given in (("no", REFUSALS), ("yes", COMPLIANCE))}  # fmt: skip
    for i, row in enumerate(LM.encode(few["train"])):
        for place, layer in enumerate((1, 2)):
            means = {}
            for side, suffixes in texts.items():
                count = min(map(len, suffixes))
                means[side] = hidden([*row, *suffixes[i % 2]], layer)[
                    len(row) : len(row) + count
                ].mean(0)
            torch.testing.assert_close(
                found[place, i], means["no"] - means["yes"], atol=1e-4, rtol=1e-4
            )


def test_a_beam_keeps_the_best_of_what_has_grown() -> None:
    class Scripted:
        """A token is worth itself; 9 ends a reply."""

        def __init__(self) -> None:
            self.grown: list[list[list[int]]] = []

        def ended(self, row: list[int]) -> bool:
            return 9 in row

        def sample(
            self, rows: list[list[int]], n: int, most: int, temperature: float
        ) -> list[list[int]]:
            self.grown.append([row[1:] for row in rows])
            return [[(3 * len(row) + 5 * i) % 8] * most for row in rows for i in range(n)]

        def rewards(self, prompt: Any, pool: list[list[int]]) -> Tensor:
            return torch.tensor([float(sum(row)) for row in pool])

    judge = Scripted()
    found = Beam(beams=2, children=3, step=2).search(judge, [0], [], 5)  # type: ignore[arg-type]
    beams: list[list[int]] = [[]]
    for _ in range(3):
        most = min(2, 5 - len(beams[0]))
        pool = [[*b, *[(3 * (len(b) + 1) + 5 * i) % 8] * most] for b in beams for i in range(3)]
        beams = sorted(pool, key=sum, reverse=True)[:2]
    assert found == beams[0]
    assert [len(rows) for rows in judge.grown] == [1, 2, 2]


def test_a_reward_puts_safe_before_unsafe_and_helpful_unsafe_last() -> None:
    grid = [(s, h) for s in (-1.0, 1.0) for h in (-1.0, 0.0, 1.0)]
    found = reward(*(torch.tensor(column) for column in zip(*grid, strict=True))).tolist()
    assert found == [2 * s + s * h for s, h in grid]
    assert min(found[3:]) > max(found[:3])
    assert found[2] == min(found)


def test_a_judge_scores_replies_so_far_as_a_forward_pass_does() -> None:
    prober = Projection(ReadPoint(TOP, Position("pilot", 1)), D)
    judge, replies = RewardModel(engine(), prober), [[30, 31, 32], [40], []]
    found = judge.rewards(ROWS[0], replies)
    for reply, value in zip(replies[:2], found, strict=False):
        row = [*ROWS[0], *reply]
        p = float(prober.score(Activations({prober.points[0]: hidden(row, TOP)[-1:]})))
        odds = logits(row).log_softmax(-1)
        mean = sum(float(odds[len(ROWS[0]) - 1 + i, token]) for i, token in enumerate(reply)) / len(
            reply
        )
        safety, helpful = 1 - 2 * p, 2 * math.exp(mean) - 1
        assert float(value) == pytest.approx(2 * safety + safety * helpful, abs=1e-3)
    assert float(found[2]) == -math.inf
    assert judge.sample([ROWS[0]], 2, 4, 1.0) == judge.sample([ROWS[0]], 2, 4, 1.0)


@pytest.mark.parametrize("name", ["best_of_n", "beam"])
def test_search_only_touches_the_grey_band_and_never_lowers_the_reward(name: str) -> None:
    method = resolve(
        name,
        SETTINGS,
        obeys,
        **({"n": 3} if name == "best_of_n" else {"step": 2, "beams": 2, "children": 2}),
    )
    switch = method.prepare(engine(), PARTS)
    assert switch.gate.stage1 is not None
    gate = replace(switch.gate, stage1=replace(switch.gate.stage1, threshold=1.0))
    wide = replace(switch, record={"grey": [-1.0, 1.0]}, gate=gate)
    assert wide.gate.watch is not None
    plain = engine().generate(ASKED, wide, max_new_tokens=6, do_sample=False)
    searching = method.wrap(engine())
    found = searching.generate(ASKED, switch=wide, max_new_tokens=6, do_sample=False)
    judge = RewardModel(engine(), wide.gate.watch.prober)
    for row, one, two in zip(ROWS, plain, found, strict=True):
        if name == "best_of_n" and not one.decision.fired:
            before, after = judge.rewards(row, [one.token_ids, two.token_ids])
            assert after >= before - 1e-5
    assert searching.searched == sum(not r.decision.fired for r in plain)  # type: ignore[attr-defined]
    narrow = replace(wide, record={"grey": [1.0, 1.0]})
    none = method.wrap(engine()).generate(ASKED, switch=narrow, max_new_tokens=6, do_sample=False)
    assert [r.token_ids for r in none] == [r.token_ids for r in plain]


def test_a_late_reading_fires_at_the_first_length_that_is_over_the_bar() -> None:
    on, every, note = TransformersEngine(LM), 2, [50, 51]
    prober = AppendingProber(Projection(ReadPoint(2, APPENDED), D), note)
    plain = on.generate(ASKED, max_new_tokens=7, do_sample=False)
    scores: list[list[tuple[int, float]]] = []
    for row, reply in zip(ROWS, plain, strict=True):
        body = [t for t in reply.token_ids if t != LM.tokenizer.eos_token_id]
        lengths = late_lengths(len(body), every)
        states = torch.stack([hidden([*row, *body[:t], *note], 2)[-1] for t in lengths])
        scores.append(
            list(
                zip(
                    lengths,
                    prober.score(Activations({prober.points[0]: states})).tolist(),
                    strict=True,
                )
            )
        )
    bar = sorted(max(s for _, s in row) for row in scores)[1] + 1e-4
    replies = on.generate(
        ASKED,
        Switch(Gate(late=Stage(prober, bar), late_every=every), Canned("No.")),
        max_new_tokens=7,
        do_sample=False,
    )
    for row, one, two in zip(scores, plain, replies, strict=True):
        first = next((t for t, score in row if score > bar), None)
        assert two.decision.fired == (first is not None)
        assert two.text == ("No." if first is not None else one.text)
        if first is not None:
            assert (two.decision.stage, two.decision.token_index) == ("late", first)
    assert len({r.decision.fired for r in replies}) == 2
    for prompt, reply in zip(ASKED, replies, strict=True):
        stream = on.stream(
            prompt,
            Switch(Gate(late=Stage(prober, bar), late_every=every), Canned("No.")),
            max_new_tokens=7,
        )
        assert "".join(stream) == reply.text


def test_late_lengths_are_every_few_and_the_end() -> None:
    assert [late_lengths(n, 3) for n in (0, 1, 3, 4, 7)] == [[], [1], [3], [3, 4], [3, 6, 7]]


def test_the_header_is_what_the_template_puts_before_a_reply() -> None:
    header = ChatEncoder(LM.tokenizer, LM.model_id).header()
    assert LM.tokenizer.decode(header) == "<|assistant|>"
    assert ROWS[0][-len(header) :] == header


def test_a_canned_reply_needs_no_model_and_streams() -> None:
    on, switch = TransformersEngine(LM), Switch(Gate(always=True), Canned("No, thank you."))
    assert [r.text for r in on.generate(ASKED, switch, max_new_tokens=32)] == [
        "No, thank you."
    ] * len(ASKED)
    assert on.generate(ASKED[:1], switch, max_new_tokens=3)[0].finish_reason == "length"
    assert "".join(on.stream(ASKED[0], switch, max_new_tokens=32)) == "No, thank you."


def test_self_checks_refuse_exactly_what_the_model_says_yes_to() -> None:
    class Says:
        lm = LM

        def generate(self, prompts: Any, switch: Switch | None = None, **options: Any) -> list[Any]:
            plain = TransformersEngine(LM).generate(prompts, switch, **options)
            texts = [p if isinstance(p, str) else p[-1].content for p in prompts]
            told = [
                "Yes." if "ZAP" in t and "yes or no" in t else r.text
                for r, t in zip(plain, texts, strict=True)
            ]
            return [replace(r, text=t) for r, t in zip(plain, told, strict=True)]

    assert "{request}" in ASK_INPUT
    for name in ("check_input", "check_output"):
        method = resolve(name, SETTINGS, obeys)
        switch = method.prepare(engine(), PARTS)
        replies = method.wrap(Says()).generate(
            ASKED, switch=switch, max_new_tokens=48, do_sample=False
        )
        assert [r.decision.fired for r in replies] == ["ZAP" in prompt for prompt in ASKED]
        assert all(
            (r.text == "I'm sorry, but I can't help with that.") == r.decision.fired
            for r in replies
        )


def test_exemplars_are_two_of_each_kind_with_their_answers() -> None:
    action = Exemplars(SETTINGS, obeys).action(engine(), PARTS, Gate(always=True))
    turns = action.turns  # type: ignore[attr-defined]
    assert [user.startswith("ZAP") for user, _ in turns] == [True, False, True, False]
    assert [reply for user, reply in turns if user.startswith("ZAP")] == ["No, sorry."] * 2


@pytest.mark.parametrize("ending", ["gguf", "safetensors"])
def test_vectors_come_back_from_their_file(ending: str, tmp_path: Path) -> None:
    steering = Steering((1, 3), rand(2, D), 2.0)
    path = tmp_path / f"v.{ending}"
    save_vectors(path, steering, model_type="llama")
    loaded = load_vectors(path, strength=0.5)
    assert (loaded.layers, loaded.strength) == ((1, 3), 0.5)
    torch.testing.assert_close(loaded.vectors, 2.0 * steering.vectors)


def test_gguf_counts_blocks_from_nought_as_repeng_does(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "r.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 1)
    writer.add_tensor("direction.1", np.arange(D, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert load_vectors(tmp_path / "r.gguf").layers == (2,)
    (tmp_path / "bad.gguf").write_bytes(b"no")
    for name, message in (
        ("bad.gguf", "not a readable GGUF"),
        ("x.npz", "kept as .gguf or"),
        ("y.gguf", "not exist"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_vectors(tmp_path / name)


def test_a_rank_one_head_in_few_places_is_its_largest_entries() -> None:
    method = resolve("patch", SETTINGS, obeys, fractions=(0.05,), spared=(0.02,))
    switch = method.prepare(engine(), PARTS)
    held = resolve("head", SETTINGS, obeys).prepare(engine(), PARTS).actuator
    assert isinstance(held, LowRankHead)
    dense = held.up @ held.down
    sparse = switch.actuator
    found = torch.zeros_like(dense)
    found[sparse.rows, sparse.columns] = sparse.values  # type: ignore[attr-defined]
    moved = int((dense != 0).sum())  # the head moves only the tokens that occur in refusals
    assert moved < 0.05 * dense.numel()  # so A is all of them, and B takes 2 % of all entries away
    assert moved - 0.02 * dense.numel() - 1 <= int((found != 0).sum()) <= moved
    torch.testing.assert_close(found[found != 0], dense[found != 0])
