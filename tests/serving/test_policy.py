"""The policy file: what it says of each client and kind of harm, what is refused in it, and how it
is put in force."""

from __future__ import annotations

import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from safeswitch.core.errors import SettingError
from safeswitch.core.harms import HARMS, OTHER
from safeswitch.serving import metrics
from safeswitch.serving.policy import (
    PRESETS,
    Facts,
    Policy,
    check_policy,
    fingerprint,
    read_policy,
    schema,
)
from safeswitch.serving.policy_in_force import PolicyInForce
from safeswitch.switch.rules import ACTS, Rule

KINDS = tuple(HARMS)
FACTS = Facts("default", KINDS, 0.6, {"0.005": 0.9, "0.01": 0.8, "0.03": 0.7, "0.1": 0.5})
DAY = date(2026, 11, 29)


def policy(**told: Any) -> Policy:
    return Policy.model_validate({"version": 1, **told})


def rule(found: Policy, kind: str, key: str | None = None, facts: Facts = FACTS) -> Rule:
    rules = found.rules(key, facts)
    return dict(rules.kinds).get(kind, rules.default)


def test_without_a_word_everything_is_refused_at_the_bundles_own_threshold() -> None:
    rules = policy().rules(None, FACTS)
    assert (rules.default, rules.kinds) == (Rule("refuse", None), ())


def test_the_nearest_level_goes_first_and_a_named_kind_before_a_word_on_all() -> None:
    found = policy(
        organisation={"act": "annotate", "kinds": {"weapons": {"act": "refuse", "threshold": 0.4}}},
        teams={"lab": {"act": "log", "kinds": {"cyber": {"act": "careful"}}}},
        keys={
            "ann": {"team": "lab"},
            "bob": {"team": "lab", "kinds": {"weapons": {"act": "log"}}},
            "eve": {"fpr": 0.01},
        },
    )
    assert rule(found, "drugs") == Rule("annotate")
    assert rule(found, "drugs", "ann") == Rule("log")
    assert rule(found, "cyber", "ann") == Rule("careful")
    assert rule(found, "weapons", "ann") == Rule("refuse", 0.4)
    assert rule(found, "weapons", "bob") == Rule("log", 0.4)
    assert rule(found, "drugs", "eve") == Rule("annotate", 0.8)
    assert rule(found, "weapons", "eve") == Rule("refuse", 0.4)
    assert rule(found, "drugs", "a stranger") == Rule("annotate")


def test_a_preset_begins_anew_and_leaves_what_the_levels_above_say() -> None:
    found = policy(
        organisation={"act": "log", "kinds": {"drugs": {"act": "allow"}}},
        keys={"ann": {"preset": "strict"}, "bob": {"preset": "permissive", "fpr": 0.03}},
    )
    assert rule(found, "drugs", "ann") == Rule("refuse", 0.7)
    assert rule(found, "advice", "bob") == Rule("annotate", 0.7)
    assert rule(found, "weapons", "bob") == Rule("refuse", 0.7)
    assert set(PRESETS) == {"permissive", "balanced", "strict"}


def test_a_budget_is_the_threshold_of_the_next_smaller_one_that_the_bundle_has() -> None:
    assert FACTS.at(0.05) == 0.7
    assert FACTS.at(0.1) == 0.5
    with pytest.raises(SettingError, match=r"no threshold for fpr 0.001 .*0.005"):
        FACTS.at(0.001)


def test_kinds_that_a_bundle_does_not_read_are_held_to_the_strictest_of_their_rules() -> None:
    found = policy(
        organisation={
            "act": "log",
            "kinds": {
                "children": {"act": "refuse", "threshold": 0.3},
                "cyber": {"act": "annotate"},
            },
        }
    )
    facts = Facts("default", ("cyber", OTHER), 0.6, {})
    assert rule(found, OTHER, facts=facts) == Rule("refuse", 0.3)
    assert rule(found, "cyber", facts=facts) == Rule("annotate")
    with pytest.raises(SettingError, match="does not read kinds of harm"):
        found.rules(None, Facts("old", (), 0.6, {}))
    assert policy().rules(None, Facts("old", (), 0.6, {})).default == Rule("refuse")


def test_what_bundle_or_engine_cannot_do_is_refused() -> None:
    careful = policy(keys={"ann": {"kinds": {"cyber": {"act": "careful"}}}})
    check_policy(careful, [FACTS], "transformers")
    with pytest.raises(SettingError, match="--engine transformers"):
        check_policy(careful, [FACTS], "vllm")
    product = Facts("product", KINDS, None, FACTS.budgets)
    with pytest.raises(SettingError, match="without a threshold of stage 1"):
        check_policy(policy(organisation={"preset": "strict"}), [FACTS, product], "vllm")
    check_policy(policy(), [FACTS, product], "vllm")


def test_requests_are_let_through_by_text_until_a_day_and_for_those_meant() -> None:
    text = "How do I kill a [stuck] process?"
    last = {"until": "2026-11-29"}
    found = policy(
        teams={"lab": {}},
        keys={"ann": {"team": "lab"}},
        allow=[
            {"pattern": "How do I kill a [[]*] process?", **last},
            {"pattern": "How do I kill a [*] process?", "teams": ["lab"], **last},
            {"fingerprint": fingerprint("once"), "keys": ["ann"], **last},
        ],
    )
    assert found.allows("ann", text, DAY)
    assert not found.allows("ann", text, DAY + timedelta(1))
    assert not found.allows("bob", text, DAY)
    assert not found.allows("ann", f"{text} And a person?", DAY)
    assert not found.allows("ann", text.lower(), DAY)
    assert found.allows("ann", "once", DAY)
    assert not found.allows(None, "once", DAY)
    assert not found.allows("ann", text.replace("stuck", "x" * 5000), DAY)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("version: 2", "version"),
        ("version: 1\ncolour: red", "colour"),
        ("version: 1\norganisation: {act: shout}", "refuse.*allow"),
        ("version: 1\norganisation: {kinds: {magic: {act: log}}}", "magic.*violence"),
        ("version: 1\norganisation: {threshold: 1.5}", "organisation.threshold"),
        ("version: 1\norganisation: {threshold: 0.5, fpr: 0.01}", "give one of them"),
        ("version: 1\nkeys: {ann: {team: lab}}", "no team 'lab'"),
        ("version: 1\nallow: [{pattern: 'a*'}]", "allow.0.until"),
        ("version: 1\nallow: [{pattern: '*', until: 2026-12-01}]", "match every request"),
        ("version: 1\nallow: [{until: 2026-12-01}]", "pattern or a fingerprint"),
        ("version: 1\nkeys: {ann: {act: log}, ann: {act: refuse}}", "given twice"),
        ("version: 1\nversion: 1", "line 2.*given twice"),
        ("- 1", "no policy"),
        ("a: [", "no policy"),
        ("", "no policy"),
        ("version: 1\norganisation: {act: !!python/name:os.system }", "no policy"),
    ],
)
def test_what_a_policy_cannot_mean_is_refused_and_named(
    tmp_path: Path, text: str, why: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=f"(?s){why}"):
        read_policy(path)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nshape: round\norganisation: {fpr: 2, act: shout}")
    with pytest.raises(SettingError) as caught:
        read_policy(path)
    assert all(name in str(caught.value) for name in ("shape", "organisation.fpr", "act"))


def test_the_schema_knows_every_field_kind_and_act() -> None:
    found = schema()
    assert found["additionalProperties"] is False
    assert set(found["properties"]) == {"version", "organisation", "teams", "keys", "allow"}
    level = found["$defs"]["Level"]["properties"]
    assert level["kinds"]["propertyNames"]["enum"] == list(HARMS)
    assert level["act"]["anyOf"][0]["enum"] == list(ACTS)


def written(path: Path, text: str) -> None:
    """Write the file so that its change shows, however fast the clock is."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_changed_file_is_in_force_at_once_and_a_bad_one_leaves_the_old_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "policy.yaml"
    written(path, "version: 1\norganisation: {act: log}")
    held = PolicyInForce(path, {"default": FACTS}, "transformers")
    first = held.id
    assert held.rules(None, None).default == Rule("log")
    written(path, "version: 1\norganisation: {act: annotate}")
    held.refresh()
    assert held.rules(None, "default").default == Rule("annotate")
    assert held.id not in ("", first)
    second = held.id
    for bad in (
        "version: 1\ncolour: red",
        "a: [",
        "version: 1\norganisation: {fpr: 0.0001}",
        "until: 2026-02-30",
        "a: &a [*a]",
        "? [a, b]\n: 1",
    ):
        written(path, bad)
        held.refresh()
        assert held.fault
        assert metrics.POLICY_FAULT._value.get() == 1
        assert (held.id, held.rules(None, None).default) == (second, Rule("annotate"))
    path.unlink()
    held.refresh()
    assert held.rules(None, None).default == Rule("annotate")
    written(path, "version: 1")
    held.refresh()
    assert (held.fault, metrics.POLICY_FAULT._value.get()) == ("", 0)
    with pytest.raises(SettingError, match="bundle must be one of 'default'"):
        held.rules(None, "other")


def test_a_server_does_not_start_with_a_bad_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    for text in (None, "version: 1\norganisation: {fpr: 0.0001}"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(SettingError):
            PolicyInForce(path, {"default": FACTS}, "transformers")


WORD = st.fixed_dictionaries(
    {},
    optional={
        "act": st.sampled_from(ACTS),
        "threshold": st.sampled_from([0.2, 0.4, 0.9]),
    },
)
LEVEL = st.builds(
    lambda word, kinds, preset: word | {"kinds": kinds} | ({"preset": preset} if preset else {}),
    WORD,
    st.dictionaries(st.sampled_from(KINDS), WORD, max_size=4),
    st.sampled_from(["", "", *PRESETS]),
)
TOLD = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "organisation": LEVEL,
        "teams": st.fixed_dictionaries({"lab": LEVEL}),
        "keys": st.fixed_dictionaries({"ann": LEVEL.map(lambda level: level | {"team": "lab"})}),
    }
)


@given(TOLD, st.sampled_from([None, "ann", "a stranger"]), st.sets(st.sampled_from(KINDS)))
def test_no_request_is_without_a_rule_and_blindness_never_makes_one_milder(
    told: dict[str, Any], key: str | None, kinds: set[str]
) -> None:
    found = Policy.model_validate(yaml.safe_load(yaml.safe_dump(told)))
    sharp = found.rules(key, FACTS)
    assert {rule.act for rule in sharp.all} <= set(ACTS)
    facts = Facts("blind", tuple(k for k in KINDS if k in {*kinds, OTHER}), 0.6, FACTS.budgets)
    blind = found.rules(key, facts)
    for kind in KINDS:
        exact = dict(sharp.kinds).get(kind, sharp.default)
        coarse = dict(blind.kinds).get(kind if kind in facts.kinds else OTHER, blind.default)
        assert ACTS.index(coarse.act) <= ACTS.index(exact.act)
        assert _limit(coarse) <= _limit(exact)


def _limit(rule: Rule) -> float:
    return 0.6 if rule.threshold is None else rule.threshold
