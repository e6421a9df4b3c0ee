"""Fitting the whole way on a tiny model; what cannot be fitted is refused, early and in plain
words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ActivationError, DataError, FitError, SettingError
from safeswitch.core.types import Decision, Example, Message, Reply
from safeswitch.data import starter
from safeswitch.data.refusal_text import refuses
from safeswitch.data.splits import grouped_split
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.fitting.fit import does_not_refuse
from safeswitch.fitting.head_data import reply_ids
from safeswitch.fitting.observe import REFUSAL_INSTRUCTIONS, refusal_pairs
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.switch.actuators.base import FullHead, LowRankHead
from safeswitch.switch.switch import Switch
from tests.engines.test_exactness import assert_untouched, snapshot
from tests.switch.made import HEAD, engine, model, requests, settings, two_of_three
from tests.tiny import tiny_lm

PARTS = grouped_split(requests())
BENIGN = [e for e in PARTS["calibration"] if not e.unsafe]


def fit(data: Any = None, **changes: Any) -> Switch:
    return Switch.fit(engine(), data or PARTS, settings(**changes), complied=two_of_three)


def clearly_fired(switch: Switch) -> list[Decision]:
    """Decisions on the calibration's benign requests that fired on more than rounding (a threshold
    is one of their scores)."""
    decisions = [
        r.decision for r in engine().generate(BENIGN, switch, max_new_tokens=17, do_sample=False)
    ]
    bars = switch.gate.thresholds()

    def margin(d: Decision) -> float:
        if d.stage == "watch" or switch.gate.stage2 is None or switch.gate.stage1 is None:
            return d.scores[d.stage] - bars[d.stage]
        if switch.gate.rule == "product":
            return d.scores["stage1"] * d.scores["stage2"] - bars["product"]
        return min(d.scores[s] - bars[s] for s in ("stage1", "stage2"))

    return [d for d in decisions if d.fired and margin(d) > 1e-4]


@pytest.mark.parametrize(
    ("changes", "stages", "rule"),
    [
        ({"rule": "and"}, ["stage1", "stage2"], "and"),
        ({"rule": "product"}, ["stage1", "stage2"], "product"),
        ({"rule": "auto"}, ["stage1", "stage2"], None),
        ({"stages": "stage1"}, ["stage1"], "and"),
        ({"stages": "direct"}, ["stage2"], "and"),
        (
            {
                "stages": "stage1",
                "watch": True,
                "watch_every": 4,
                "max_new_tokens": 12,
                "budget": 0.25,
            },
            ["stage1", "watch"],
            "and",
        ),
    ],
    ids=str,
)
def test_each_kind_of_gate_is_fitted_and_keeps_its_budget_on_the_calibration_requests(
    changes: dict[str, Any], stages: list[str], rule: str | None
) -> None:
    switch = fit(**changes)
    found = [
        name for name in ("stage1", "stage2", "watch") if getattr(switch.gate, name) is not None
    ]
    assert found == stages
    assert rule is None or switch.gate.rule == rule
    assert -(-(len(BENIGN) + 1) * 7 // 8) == len(
        BENIGN
    )  # ceil((n + 1)(1 - 1/8)): the rank is that of the highest score
    assert clearly_fired(switch) == []


def test_stage_one_tells_the_two_kinds_of_requests_apart() -> None:
    switch = fit(stages="stage1")
    replies = engine().generate(requests(), switch, max_new_tokens=1, do_sample=False)
    wrong = [e.id for e, r in zip(requests(), replies, strict=True) if e.unsafe != r.decision.fired]
    assert len(wrong) <= 8
    assert switch.record["metrics"]["stage1 AUROC"]["value"] > 0.95


@pytest.mark.parametrize(("kind", "expected"), [("low_rank", LowRankHead), ("full", FullHead)])
def test_the_head_asked_for_is_trained_and_the_model_left_as_it_was(
    kind: Any, expected: type
) -> None:
    before = snapshot(model())
    switch = fit(stages="stage1", head=replace(HEAD, kind=kind, beta=0.75))
    assert isinstance(switch.actuator, expected)
    assert switch.actuator.beta == 0.75
    assert_untouched(model(), before)


def test_a_list_is_split_as_grouped_split_does() -> None:
    ready, split = fit(stages="stage1"), fit(requests(), stages="stage1")
    assert ready.fingerprint == split.fingerprint
    assert ready.record["data"] == split.record["data"]


def test_a_stage_without_both_outcomes_is_left_out_and_the_record_says_why() -> None:
    always = Switch.fit(engine(), PARTS, settings(), complied=lambda e, r: True)
    assert always.gate.stage2 is None
    assert (
        always.record["calibration"]["stage2"]
        == "left out: compliance on all of the 48 training requests"
    )
    held = {e.id for e in PARTS["validation"]}
    partly = Switch.fit(
        engine(), PARTS, settings(), complied=lambda e, r: e.id not in held and two_of_three(e, r)
    )
    assert (
        partly.record["calibration"]["stage2"]
        == "left out: compliance on none of the 16 validation requests"
    )
    watch = Switch.fit(
        engine(),
        PARTS,
        settings(watch=True, watch_every=2, budget=0.25),
        complied=lambda e, r: not e.unsafe,
    )
    assert watch.gate.watch is None
    assert (
        watch.record["calibration"]["watch"]
        == "left out: harmful compliance on none of the 48 training requests"
    )


def test_a_direct_gate_without_harmful_compliance_cannot_be_fitted() -> None:
    with pytest.raises(
        FitError, match="no stage could be fitted: left out: harmful compliance on none of the 48"
    ):
        Switch.fit(engine(), PARTS, settings(stages="direct"), complied=lambda e, r: False)


def test_without_harmful_compliance_on_validation_no_rule_can_win_and_the_record_stays_plain_json() -> (
    None
):
    held = {e.id for e in PARTS["validation"] if e.unsafe}
    switch = Switch.fit(
        engine(), PARTS, settings(), complied=lambda e, r: e.id not in held and two_of_three(e, r)
    )
    assert switch.record["calibration"]["harmful_on_validation"] == 0
    assert switch.record["calibration"]["caught_on_validation"] == {"and": 0.0, "product": 0.0}


class Untouchable(TransformersEngine):
    """Refuses to generate: for errors that must come before anything is run."""

    def generate(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("the model was asked")

    collect = generate


def only(part: str, unsafe: bool) -> dict[str, list[Example]]:
    return {**PARTS, part: [e for e in PARTS[part] if e.unsafe == unsafe]}


@pytest.mark.parametrize(
    ("data", "changes", "error", "message"),
    [
        (
            only("train", True),
            {},
            FitError,
            "train: needs unsafe and safe requests; all 24 are labelled unsafe",
        ),
        (
            only("validation", False),
            {},
            FitError,
            "validation: needs unsafe and safe requests; all 8 are labelled safe",
        ),
        (
            only("calibration", True),
            {},
            FitError,
            "needs at least 7 safe requests in the calibration part; got 0",
        ),
        (
            PARTS,
            {"budget": 0.01},
            FitError,
            "budget of 0.01 needs at least 99 safe requests in the calibration part; got 8",
        ),
        ({"train": PARTS["train"]}, {}, DataError, "missing or empty: validation, calibration"),
        ({**PARTS, "train": []}, {}, DataError, "missing or empty: train"),
        ([e for e in requests() if e.unsafe], {}, FitError, "all .* are labelled unsafe"),
        ([], {}, DataError, "0 examples"),
        (
            PARTS,
            {"layers": (9,)},
            SettingError,
            r"layer 9 does not exist; the model has layers 0\.\.3",
        ),
        (PARTS, {"layers": (-5,)}, SettingError, "layer -5 does not exist"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_the_model_is_asked(
    data: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Switch.fit(Untouchable(model()), data, settings(**changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.0}, "budget must lie in"),
        ({"budget": float("nan")}, "budget must lie in"),
        ({"miss_budget": 0.6}, "miss_budget must lie in"),
        ({"rule": "or"}, "rule must be one of 'auto', 'and', 'product'"),
        ({"stages": "three"}, "stages must be one of"),
        ({"fail": "ajar"}, "fail must be one of"),
        ({"readers": ()}, "readers is empty"),
        ({"readers": ("layers", "tea")}, "readers must be among .*'tea'"),
        ({"pilot": 4}, r"pilot must lie in 0\.\.3"),
        ({"layer_count": 0}, "layer_count must be 1 or more"),
        ({"layers": ()}, "layers is empty"),
        ({"window": -1}, "window must be 0 .* or more; got -1"),
        ({"watch_every": 0}, "watch_every must be 1 or more"),
        ({"head_examples": 0}, "head_examples must be 1 or more"),
    ],
)
def test_settings_outside_their_limits_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings(**change)


def test_the_old_name_of_a_setting_works_with_a_warning_and_stays_in_files() -> None:
    with pytest.warns(DeprecationWarning, match="reply_tokens is called max_new_tokens now"):
        old = FitSettings(reply_tokens=9)  # type: ignore[call-arg]
    assert old == FitSettings(max_new_tokens=9)
    with pytest.warns(DeprecationWarning, match="reply_tokens is called max_new_tokens now"):
        assert replace(FitSettings(), reply_tokens=9) == old  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="reply_tokens is called max_new_tokens now"):
        assert old.reply_tokens == 9  # type: ignore[attr-defined]
    assert old.to_dict()["reply_tokens"] == 9  # as in every bundle so far
    assert set(old.to_dict()) - {"reply_tokens"} == set(asdict(old)) - {"max_new_tokens"}


def test_layers_may_be_counted_from_the_end_and_named_twice() -> None:
    assert FitPlan(3, FitSettings(layers=(-1, 3, 0))).layers == (3, 0)
    assert FitPlan(32, FitSettings()).layers == (8, 11, 15, 18, 22, 25, 29, 32)
    alone = FitSettings(layers=(1,), readers=("layers",), stages="stage1")
    assert len(FitPlan(3, alone).points) == 1


def test_states_that_are_not_finite_stop_the_fit_with_place_and_row() -> None:
    lm = tiny_lm("llama")
    bad = lm.encode([PARTS["train"][5]])[0]

    def poison(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        rows = [row for row, ids in enumerate(seen[-1]) if ids[-len(bad) :].tolist() == bad]
        output = output.clone()
        output[rows, -1] = float("nan")
        return output

    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["input_ids"])

    chosen = settings(stages="stage1", layers=(2,))
    recording = TransformersEngine(lm)
    every = [e for part in PARTS.values() for e in part]
    replies = {
        e.id: r for e, r in zip(every, recording.generate(every, max_new_tokens=4), strict=True)
    }
    recording.generate = lambda prompts, **options: [replies[e.id] for e in prompts]  # type: ignore[method-assign]
    handles = [
        lm.parts.backbone.register_forward_pre_hook(note, with_kwargs=True),
        lm.parts.blocks[1].register_forward_hook(poison),
    ]
    with pytest.raises(
        ActivationError, match=r"states at 2@prompt_end are not finite \(row 5 of 48"
    ):
        Switch.fit(recording, PARTS, chosen, complied=two_of_three)
    for handle in handles:
        handle.remove()


class Scripted(TransformersEngine):
    """Answers under a safety instruction with a refusal that knows the request; without one, with
    ``answer``."""

    refuses: Any = staticmethod(lambda text: True)
    answer = "Sure."

    def generate(self, prompts: Sequence[Any], *args: Any, **options: Any) -> list[Reply]:
        replies = super().generate(prompts, *args, **options)
        self.asked = [*getattr(self, "asked", []), *prompts]
        return [self._worded(p, r) for p, r in zip(prompts, replies, strict=True)]

    def collect(
        self, prompts: Sequence[Any], *args: Any, **options: Any
    ) -> tuple[list[Reply], Activations]:
        replies, activations = super().collect(prompts, *args, **options)
        worded = [self._worded(p, r) for p, r in zip(prompts, replies, strict=True)]
        return worded, activations

    def _worded(self, prompt: Any, reply: Reply) -> Reply:
        if isinstance(prompt, Example):
            return replace(reply, text=self.answer)
        assert prompt[0].role == "system"
        no = self.refuses(prompt[-1].content)
        return replace(
            reply, text=f"I can't help with {prompt[-1].content}." if no else "Sure, here it is."
        )


def test_refusals_are_self_written_when_the_data_hold_none() -> None:
    writer = Scripted(model(), batch_size=64)
    examples, refusals = refusal_pairs(
        writer, requests(40, replies=False), complied=does_not_refuse, most=12, max_new_tokens=4
    )
    assert len(examples) == 12
    assert refusals == [f"I can't help with {e.prompt}." for e in examples]
    assert all(turns[0] == Message("system", REFUSAL_INSTRUCTIONS[0]) for turns in writer.asked)


def test_requests_that_were_not_refused_are_asked_again_under_the_next_instruction() -> None:
    writer = Scripted(model(), batch_size=64)
    writer.refuses = lambda text: int(text.split()[-1]) % 4 == 0
    examples, _ = refusal_pairs(
        writer, requests(40, replies=False), complied=does_not_refuse, most=20, max_new_tokens=4
    )
    assert [int(e.prompt.split()[-1]) % 4 for e in examples] == [0] * 10
    assert Counter(turns[0].content for turns in writer.asked) == dict(
        zip(REFUSAL_INSTRUCTIONS, (20, 10, 10), strict=True)
    )


def test_refusals_given_in_the_data_are_taken_as_they_are() -> None:
    examples, refusals = refusal_pairs(
        engine(), requests(40), complied=does_not_refuse, most=7, max_new_tokens=4
    )
    assert [e.id for e in examples] == [f"r{2 * i}" for i in range(7)]
    assert refusals == ["No, sorry."] * 7


def test_a_model_that_never_refuses_needs_refusals_given() -> None:
    writer = Scripted(model(), batch_size=64)
    writer.refuses = lambda text: False
    with pytest.raises(
        FitError, match=r"wrote only 0 refusals to 20 unsafe requests .* at least 8 are needed"
    ):
        refusal_pairs(
            writer, requests(40, replies=False), complied=does_not_refuse, most=20, max_new_tokens=4
        )


def test_few_head_examples_need_no_more_refusals_than_are_asked_for() -> None:
    examples, _ = refusal_pairs(
        Scripted(model()),
        requests(40, replies=False),
        complied=does_not_refuse,
        most=3,
        max_new_tokens=4,
    )
    assert len(examples) == 3


def test_requests_without_room_for_an_instruction_and_a_refusal_are_passed_over() -> None:
    lm = tiny_lm("llama", max_position_embeddings=160)
    data = requests(40, replies=False)
    long = replace(data[0], id="r100", messages=(Message("user", "ZAP " + "x" * 100 + " 100"),))
    examples, _ = refusal_pairs(
        Scripted(lm), [long, *data], complied=does_not_refuse, most=20, max_new_tokens=4
    )
    assert long.id not in {e.id for e in examples}
    assert len(examples) == 20


def test_a_switch_is_fitted_on_self_written_refusals_the_whole_way() -> None:
    writer = Scripted(model(), batch_size=64)
    parts = grouped_split(requests(replies=False))
    switch = Switch.fit(writer, parts, settings(stages="stage1", head_examples=16))
    words: set[int] = set()
    for part, most in (("train", 16), ("validation", 4)):
        _, refusals = refusal_pairs(
            writer, parts[part], complied=does_not_refuse, most=most, max_new_tokens=4
        )
        words.update(token for text in refusals for token in reply_ids(model(), text))
    assert switch.record["head"]["trained_parameters"] == model().hidden_size + len(words)


def test_replies_of_white_space_leave_the_head_nothing_to_stay_close_to() -> None:
    writer = Scripted(model(), batch_size=64)
    writer.answer = " \n"
    with pytest.raises(FitError, match="replies to safe requests are all white space"):
        Switch.fit(writer, PARTS, settings(stages="stage1"))


class Tracked:
    """Notes how much of each step was done."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: Counter[str] = Counter()

    @contextmanager
    def __call__(self, total: int, text: str) -> Iterator[Callable[[int], None]]:
        self.totals[text] = self.totals.get(text, 0) + total
        yield lambda done: self.done.update({text: done})


@pytest.mark.parametrize("stages", ["two", "stage1", "direct"])
def test_every_long_step_tells_how_far_it_is_up_to_its_end(stages: str) -> None:
    track = Tracked()
    writer = Scripted(model(), batch_size=5)
    bare = {name: [replace(e, reply=None) for e in part] for name, part in PARTS.items()}
    chosen = settings(stages=stages, watch=True, watch_every=2, budget=0.25, trust_replies=False)
    Switch.fit(writer, bare, chosen, complied=of_two_kinds, track=track)
    early = "head, rank 1, 4 epochs at most"
    assert 0 < track.done.pop(early) <= track.totals.pop(early)
    assert dict(track.done) == track.totals
    assert track.totals["train: answers and states"] == len(PARTS["train"])
    assert track.totals["refusals, instruction 1 of 3"] == sum(
        e.unsafe for e in [*PARTS["train"], *PARTS["validation"]]
    )
    assert {"probers", "head, reading refusals", "head, reading own replies"} <= set(track.totals)


def of_two_kinds(example: Example, reply: str) -> bool:
    """Both outcomes for both labels, and no refusal that was written complies."""
    return not refuses(reply) and two_of_three(example, reply)


def test_the_plan_counts_requests_tokens_and_steps() -> None:
    told: list[str] = []
    Switch.fit(
        engine(),
        PARTS,
        settings(stages="stage1", layers=(2,)),
        complied=two_of_three,
        say=told.append,
    )
    rows = [e for part in PARTS.values() for e in part]
    tokens = sum(len(row) for row in model().encode(rows))
    unsafe = sum(e.unsafe for e in PARTS["train"])
    assert told[0] == (
        f"this fit: {len(rows)} requests (train {len(PARTS['train'])}, validation {len(PARTS['validation'])}, "
        f"calibration {len(PARTS['calibration'])}) of {tokens:,} tokens; replies of up to {4 * len(rows)} tokens; then "
        f"the probers; then the head on up to {unsafe} refusals, 1 x 4 epochs at most"
    )


def test_without_data_the_starter_set_is_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "fitting_rows", requests)
    chosen = settings(stages="stage1", layers=(2,))
    alone = Switch.fit(engine(), settings=chosen, complied=two_of_three)
    assert (
        alone.fingerprint
        == Switch.fit(engine(), requests(), chosen, complied=two_of_three).fingerprint
    )
    assert alone.record["sources"]["s0"] == {"unsafe": 14, "safe": 14}
