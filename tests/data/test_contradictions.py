"""Rows that say two things of one request."""

from __future__ import annotations

from safeswitch.core.types import Example, Message
from safeswitch.data.contradictions import contradictions, describe


def row(name: str, text: str, label: str, system: str = "") -> Example:
    head = (Message("system", system),) if system else ()
    return Example(name, (*head, Message("user", text)), label, place=f"f, line {name}")  # type: ignore[arg-type]


def test_the_same_request_with_both_labels_is_found_whatever_its_case_and_spaces() -> None:
    rows = [
        row("1", "Open it", "safe"),
        row("2", "close", "safe"),
        row("3", "open  IT!", "unsafe"),
        row("4", "close", "safe"),
    ]
    assert contradictions(rows) == [(rows[0], rows[2])]


def test_another_system_turn_makes_another_request() -> None:
    assert (
        contradictions(
            [row("1", "go", "safe", "a"), row("2", "go", "unsafe", "b"), row("3", "go", "")]
        )
        == []
    )


def test_they_are_counted_and_the_first_is_named() -> None:
    rows = [row("1", "go", "safe"), row("2", "go", "unsafe"), row("3", "go", "safe")]
    text = describe(contradictions(rows))
    assert text.startswith("3 rows are 1 requests that are labelled both safe and unsafe")
    assert "'1' (f, line 1) as safe and '2' (f, line 2) as unsafe" in text
