"""Each method gives the switch that it stands for."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from safeswitch.core.deprecated import old_names
from safeswitch.core.types import Decision, Example, Reply
from safeswitch.data.splits import grouped_split
from safeswitch.methods.base import METHODS
from safeswitch.methods.resolve import resolve
from safeswitch.methods.safeswitch import AlwaysHead, SafeSwitch
from safeswitch.methods.safety_prompt import PROMPTS, SafetyPrompt
from safeswitch.methods.untouched import Untouched
from safeswitch.switch.actuators.base import NoAction, SystemPrompt
from safeswitch.switch.switch import Switch
from tests.switch.made import engine, fitted, model, requests, settings, two_of_three

PARTS = grouped_split(requests())
SETTINGS = settings(stages="stage1")


def test_the_table_holds_the_methods_under_their_own_names() -> None:
    assert all(METHODS[name].name == name for name in METHODS)
    assert {"base", "head", "prompt", "safeswitch", "scans", "antidote", "cast", "beam"} <= set(
        METHODS
    )


def test_every_methods_file_names_its_source_and_its_weakness() -> None:
    own = [name for name in METHODS if METHODS[name].__module__.startswith("safeswitch.")]
    assert len(own) > 20
    for name in own:
        text = sys.modules[METHODS[name].__module__].__doc__ or ""
        assert re.search(r"arXiv \d{4}\.\d{4,5}", text) or name == "base", name
        assert "eakness" in text + (METHODS[name].__doc__ or "") or name in ("base", "head"), name


def test_the_untouched_model_is_a_switch_that_never_fires() -> None:
    switch = Untouched().prepare(engine(), PARTS)
    one, two = (
        engine().generate(["ZAP it"], s, max_new_tokens=6, do_sample=False)[0]
        for s in (switch, None)
    )
    assert (one.token_ids, one.decision.fired) == (two.token_ids, False)
    assert isinstance(switch.actuator, NoAction)


def test_safeswitch_is_what_fitting_gives() -> None:
    switch = SafeSwitch(SETTINGS, two_of_three).prepare(engine(), PARTS)
    assert (
        switch.fingerprint
        == Switch.fit(engine(), PARTS, SETTINGS, complied=two_of_three).fingerprint
    )


def test_the_always_on_head_is_the_fitted_one_on_every_request() -> None:
    switch = AlwaysHead(SETTINGS, two_of_three, fitted=fitted()).prepare(engine(), PARTS)
    assert switch.actuator is fitted().actuator
    assert switch.base == fitted().base
    replies = engine().generate(["ZAP it", "ask me"], switch, max_new_tokens=3, do_sample=False)
    assert [(r.decision.fired, r.decision.stage) for r in replies] == [(True, "always")] * 2


class Obeys:
    """Complies as its table says: by system prompt, for unsafe and for safe requests."""

    lm = model()

    def __init__(self, table: dict[str, tuple[bool, bool]]) -> None:
        self.table, self.asked = table, 0

    def generate(self, prompts: Sequence[Any], **options: Any) -> list[Reply]:
        self.asked += len(prompts)
        row = self.table[options["switch"].actuator.text]
        return [
            Reply("yes" if row[not e.unsafe] else "no", (), "stop", Decision(True, "always"), 1)
            for e in prompts
        ]


def said_yes(example: Example, reply: str) -> bool:
    return reply == "yes"


@pytest.mark.parametrize(
    ("table", "best"),
    [
        ({"a": (True, True), "b": (False, True), "c": (False, False)}, "b"),
        ({"a": (False, False), "b": (True, False), "c": (True, True)}, "a"),
    ],
)
def test_the_prompt_with_the_least_harm_and_over_refusal_on_validation_wins(
    table: Any, best: str
) -> None:
    method = SafetyPrompt(SETTINGS, said_yes, candidates=("a", "b", "c"), requests=5)
    asked = Obeys(table)
    switch = method.prepare(asked, PARTS)
    assert isinstance(switch.actuator, SystemPrompt)
    assert (switch.actuator.text, switch.gate.always) == (best, True)
    assert asked.asked == 3 * (5 + 5)


def test_a_single_candidate_is_taken_without_asking_the_model() -> None:
    switch = SafetyPrompt(SETTINGS, said_yes, candidates=PROMPTS[:1]).prepare(Obeys({}), PARTS)
    assert isinstance(switch.actuator, SystemPrompt)
    assert switch.actuator.text == PROMPTS[0]


@pytest.mark.parametrize(
    ("name", "old", "new", "value"),
    [
        ("antidote", "layer_share", "layer_fraction", 0.5),
        ("dense_antidote", "entry_share", "entry_fraction", 0.5),
        ("cast", "shares", "multiples", (1.0,)),
        ("scans", "shares", "multiples", (1.0,)),
        ("patch", "shares", "fractions", (0.1,)),
        ("patch_weights:w.safetensors", "share", "fraction", 0.1),
        ("merge:w.safetensors", "shares", "fractions", (0.5,)),
    ],
)
def test_the_old_name_of_a_methods_setting_works_with_a_warning_and_stays_in_a_runs_identity(
    name: str, old: str, new: str, value: object
) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new} now"):
        method = resolve(name, **{old: value})
    assert method == resolve(name, **{new: value})
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new} now"):
        assert getattr(method, old) == value
    assert old_names(type(method))[new] == old
