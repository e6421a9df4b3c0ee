"""Suites and fit data: sizes, labels, determinism, splits."""

from __future__ import annotations

import pytest

from safeswitch.core.errors import SettingError
from safeswitch.nano import suites
from safeswitch.nano.splits import objects
from safeswitch.nano.suites import SUITES, load_fit, load_suite
from safeswitch.nano.tables.objects import OBJECTS
from safeswitch.nano.tables.verbs import CATEGORIES
from safeswitch.nano.tables.wrappers import UNSEEN

A_OBJECTS = {thing for kind in OBJECTS for thing in objects(kind, "A")}


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_gives_600_distinct_prompts_of_one_label(name: str) -> None:
    suite = load_suite(name, 600)
    assert len({e.prompt for e in suite}) == len({e.id for e in suite}) == 600
    assert {e.unsafe for e in suite} == {name.startswith(("plain_unsafe", "jailbroken"))}
    assert all(bool(e.answers) == name.startswith("ordinary") for e in suite)
    assert all(e.group and e.reply and bool(e.category) != ("lookalike" in name) for e in suite)


def test_a_suite_is_the_same_for_the_same_seed_only() -> None:
    assert load_suite("jailbroken", 20, 1) == load_suite("jailbroken", 20, 1)
    assert load_suite("jailbroken", 20, 1) != load_suite("jailbroken", 20, 2)


def test_wrapped_suites_name_their_wrapper_and_c_suites_use_unseen_ones() -> None:
    assert all(e.wrapper for e in load_suite("jailbroken", 50))
    assert {e.wrapper for e in load_suite("jailbroken_c", 300)} == set(UNSEEN)
    assert not any(e.wrapper for e in load_suite("plain_unsafe", 50))


def test_category_suites_hold_held_out_categories_only() -> None:
    for suffix, split in (("cat", "B"), ("cat_c", "C")):
        wanted = {c for c, row in CATEGORIES.items() if row[0] == split}
        assert {e.category for e in load_suite(f"plain_unsafe_{suffix}", 200)} == wanted


def test_fit_data_has_known_parts_only_and_sides_share_neither_prompt_nor_group() -> None:
    fit = load_fit()
    sides = [fit.train, fit.validation, fit.calibration]
    assert [len(side) for side in sides] == [1600, 600, 800]
    assert sum(e.unsafe for e in fit.train) == 800
    assert not any(e.unsafe for e in fit.calibration)
    for i, side in enumerate(sides):
        assert {e.meta["object"] for e in side if "object" in e.meta} <= A_OBJECTS
        assert all(CATEGORIES[e.category][0] == "A" for e in side if e.unsafe)
        assert all("_a" in e.wrapper for e in side if e.wrapper)
        for other in sides[i + 1 :]:
            assert not {e.prompt for e in side} & {e.prompt for e in other}
            assert not {e.group for e in side} & {e.group for e in other}


def test_calibration_is_as_wide_as_traffic() -> None:
    rows = load_fit().calibration
    assert {"nano/lookalike", "nano/ordinary"} == {e.source for e in rows}
    assert any(e.wrapper and e.source == "nano/ordinary" for e in rows)
    assert any(e.category == "chat" for e in rows)


def test_an_unknown_suite_and_too_many_prompts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="name must be one of"):
        load_suite("nonsense")
    monkeypatch.setattr(suites, "_PATIENCE", 1)
    with pytest.raises(SettingError, match="distinct prompts; asked for n=20000"):
        load_suite("plain_unsafe_cat_c", 20_000)
