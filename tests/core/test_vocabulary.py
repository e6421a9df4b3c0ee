"""Registry, frozen vocabulary and the checks of its members."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from safeswitch.core import errors
from safeswitch.core.errors import (
    DataError,
    SafeSwitchError,
    SettingError,
    check_choice,
    check_range,
)
from safeswitch.core.registry import Registry
from safeswitch.core.types import (
    Decision,
    Example,
    Message,
    Output,
    Position,
    ReadPoint,
    as_messages,
)

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
    assert len(found) == len(re.findall(r"[├└]── ", tree)) + 1
    for error in found:
        assert issubclass(error, SafeSwitchError)
        assert error.__name__ in tree


@pytest.mark.parametrize(
    "text", ["prompt_end", "pilot:3", "window:0", "window:16", "mean:0", "mean:24"]
)
def test_positions_and_points_are_read_as_they_are_written(text: str) -> None:
    assert Position.parse(str(Position.parse(text))) == Position.parse(text)
    assert ReadPoint.parse(f"4@{text}") == ReadPoint(4, Position.parse(text))
    assert ReadPoint.parse(str(ReadPoint(4, Position.parse(text)))).layer == 4


def test_outputs_of_a_block_are_read_as_they_are_written() -> None:
    point = ReadPoint.parse("18.attn@pilot:3")
    assert (point, str(point)) == (ReadPoint(18, Position("pilot", 3), "attn"), "18.attn@pilot:3")
    assert point.site == Output(18, "attn")
    assert ReadPoint.parse("18.mlp") == ReadPoint(18, Position("prompt_end"), "mlp")
    assert ReadPoint.parse("18@pilot:3").site == 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "18.mpl@prompt_end",
            "the part in '18.mpl@prompt_end' must be one of 'attn', 'mlp'; got 'mpl'",
        ),
        ("18.@prompt_end", "must be one of 'attn', 'mlp'; got ''"),
        ("18.attn.mlp@prompt_end", "must be one of 'attn', 'mlp'; got 'attn.mlp'"),
        ("18.ATTN@prompt_end", "must be one of 'attn', 'mlp'; got 'ATTN'"),
        ("18. attn@prompt_end", "must be one of 'attn', 'mlp'; got ' attn'"),
        ("0.attn@prompt_end", r"the first block has number 1; got 0\.attn"),
        ("attn@prompt_end", r"expected 'layer@position' or 'block\.part@position'"),
        ("1.5@prompt_end", "must be one of 'attn', 'mlp'; got '5'"),
        ("18.mlp@nll:4", r"nll is read of no part of a block; got 18\.mlp@nll:4"),
    ],
)
def test_outputs_that_make_no_sense_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ReadPoint.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "x@prompt_end",
        "-1@prompt_end",
        "4@pilot:x",
        "4@middle",
        "4@pilot:-1",
        "",
        "4@prompt_end:3",
        "²@prompt_end",
        "4@pilot:²",
    ],
)
def test_points_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingError):
        ReadPoint.parse(text)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        (" \n\t", "the prompt is empty"),
        ([], "the prompt has no messages"),
        ([{"role": "user"}], "turn 0 of the prompt needs 'role' and 'content'"),
        (["hi"], "turn 0 of the prompt needs"),
        (
            [{"role": "robot", "content": "hi"}],
            "role must be one of system, user, assistant; got 'robot'",
        ),
        ([{"role": "user", "content": 3}], "message content must be text; got int"),
        ([Message("user", " ")], "the last user message is empty"),
    ],
)
def test_a_prompt_without_words_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_messages(prompt)


def test_every_form_of_a_prompt_becomes_the_same_messages() -> None:
    forms: list[Any] = [
        "hi",
        [HI],
        [{"role": "user", "content": "hi"}],
        Example("a", (HI,), "safe"),
    ]
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
def test_an_example_that_cannot_be_asked_is_refused(
    messages: Any, label: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Example("a", messages, label)


def test_the_end_of_the_prompt_has_no_index() -> None:
    with pytest.raises(SettingError, match="prompt_end takes no index; got 3"):
        Position("prompt_end", 3)


HALF = "a\ud800b"


@pytest.mark.parametrize(
    "prompt", [HALF, [{"role": "system", "content": HALF}, {"role": "user", "content": "hi"}]]
)
def test_half_of_a_surrogate_pair_in_a_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(
        DataError, match=r"message content cannot be written as UTF-8: character 2 is '\\ud800'"
    ):
        as_messages(prompt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, HALF) for name in ("id", "category", "source", "group", "wrapper", "reply")),
        ("answers", ("a", HALF)),
        ("meta", {"k": HALF}),
        ("meta", {HALF: "v"}),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_in_every_field_of_an_example(
    field: str, value: Any
) -> None:
    with pytest.raises(DataError, match=f"{field} cannot be written as UTF-8"):
        Example(**{"id": "a", "messages": (HI,), "label": "safe", field: value})


def test_an_example_without_a_label_can_be_asked_but_is_neither_safe_nor_unsafe() -> None:
    example = Example("a", (HI,))
    assert as_messages(example) == (HI,)
    with pytest.raises(DataError, match="example 'a' has no label; give safe or unsafe"):
        _ = example.unsafe


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
