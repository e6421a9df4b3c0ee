"""Registry, frozen vocabulary and the checks of its members."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safeswitch.core import errors
from safeswitch.core.errors import DataError, SafeSwitchError, SettingError, check_choice, check_range
from safeswitch.core.registry import Registry
from safeswitch.core.types import Decision, Example, Message, Position, ReadPoint, as_messages

HI = Message("user", "hi")


def test_a_registry_gives_what_was_added_in_alphabetical_order() -> None:
    table: Registry[type] = Registry("thing")
    assert table.add("b")(int) is int
    table.add("a")(str)
    assert (table["a"], list(table), "b" in table, "c" in table) == (str, ["a", "b"], True, False)


def test_a_name_is_taken_once_and_an_unknown_one_lists_the_known() -> None:
    table: Registry[type] = Registry("thing")
    table.add("a")(int)
    with pytest.raises(SettingError, match="thing 'a' is registered twice"):
        table.add("a")(str)
    assert table["a"] is int
    with pytest.raises(SettingError, match="unknown thing 'x'; known: a"):
        table["x"]


def test_every_error_is_in_the_tree_drawn_on_top_of_its_file() -> None:
    tree = str(errors.__doc__)
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) == 11
    for error in found:
        assert issubclass(error, SafeSwitchError)
        assert error.__name__ in tree


@pytest.mark.parametrize("text", ["prompt_end", "pilot:3", "window:0", "window:16"])
def test_positions_and_points_are_read_as_they_are_written(text: str) -> None:
    assert Position.parse(str(Position.parse(text))) == Position.parse(text)
    assert ReadPoint.parse(f"4@{text}") == ReadPoint(4, Position.parse(text))
    assert ReadPoint.parse(str(ReadPoint(4, Position.parse(text)))).layer == 4


@pytest.mark.parametrize("text", ["x@prompt_end", "-1@prompt_end", "4@pilot:x", "4@middle", "4@pilot:-1", ""])
def test_points_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingError):
        ReadPoint.parse(text)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"), (" \n\t", "the prompt is empty"), ([], "the prompt has no messages"),
        ([{"role": "user"}], "turn 0 of the prompt needs 'role' and 'content'"), (["hi"], "turn 0 of the prompt needs"),
        ([{"role": "robot", "content": "hi"}], "role must be one of system, user, assistant; got 'robot'"),
        ([{"role": "user", "content": 3}], "message content must be text; got int"),
        ([Message("user", " ")], "the last user message is empty"),
    ],
)
def test_a_prompt_without_words_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_messages(prompt)


def test_every_form_of_a_prompt_becomes_the_same_messages() -> None:
    forms: list[Any] = ["hi", [HI], [{"role": "user", "content": "hi"}], Example("a", (HI,), "safe")]
    assert {as_messages(form) for form in forms} == {(HI,)}


@pytest.mark.parametrize(
    ("messages", "label", "message"),
    [
        ((HI,), "harmless", "example 'a': label must be one of safe, unsafe; got 'harmless'"),
        ((), "safe", "has no messages"),
        ((HI, Message("assistant", "ho")), "safe", "the last message must be the user's"),
        ((Message("user", "  "),), "safe", "the user's message is empty"),
    ],
)
def test_an_example_that_cannot_be_asked_is_refused(messages: Any, label: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Example("a", messages, label)


def test_a_decision_is_plain_json() -> None:
    decision = Decision(True, "stage2", {"stage1": 0.5}, {"stage1": 0.25}, token_index=3)
    assert json.loads(json.dumps(decision.to_dict()))["scores"] == {"stage1": 0.5}


def test_checks_name_owner_parameter_limits_and_value() -> None:
    with pytest.raises(SettingError, match=r"Oven: heat must lie in \[0, 9\]; got 10"):
        check_range("Oven", "heat", 10, 0, 9)
    with pytest.raises(SettingError, match="got nan"):
        check_range("Oven", "heat", float("nan"), 0, 9)
    with pytest.raises(SettingError, match="Oven: mode must be one of 'top', 'fan'; got 'off'"):
        check_choice("Oven", "mode", "off", ("top", "fan"))
