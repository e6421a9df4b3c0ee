"""Bars: rate and time left on a terminal, a plain line a minute elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from safeswitch.cli import screen


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(screen, "time", made)
    return made


def test_where_there_is_no_terminal_a_line_a_minute_tells_rate_and_time_left(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=out, width=100))
    with screen.bar(1000, "train: answers") as advance:
        for second in range(130):
            clock.now = 1001.0 + second
            advance(2)
    lines = out.getvalue().splitlines()
    assert lines == [
        "train: answers: 120 of 1000, 2.0/s, about 7 min left",
        "train: answers: 240 of 1000, 2.0/s, about 6 min left",
    ]


def test_slow_parts_are_told_by_the_minute_and_long_waits_by_the_hour(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=out, width=100))
    with screen.bar(101, "head") as advance:
        clock.now += 90
        advance(1)
    assert out.getvalue() == "head: 1 of 101, 0.7/min, about 2 h 30 min left\n"


def test_a_short_step_says_nothing_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=out, width=100))
    with screen.bar(3, "quick") as advance:
        advance(3)
    assert out.getvalue() == ""


def test_on_a_terminal_there_is_a_bar_with_count_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=out, width=140, force_terminal=True))
    with screen.bar(4, "train [answers]") as advance:
        for _ in range(4):
            advance(1)
    shown = out.getvalue()
    assert "train [answers]" in shown
    assert "4/4" in shown
    assert "/s" in shown
