"""Stop strings, however the text is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safeswitch.serving.transformers.stop_text import StopText, before_stop

letters = st.text("abc", max_size=12)


@given(st.lists(letters, max_size=6), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_pieces_join_to_the_text_before_the_first_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    seen: list[str] = []
    cut = StopText(stops, seen.append)
    for piece in pieces:
        cut.feed(piece)
        # what has been said can never be rolled back, whatever follows
        assert not any(stop in "".join(seen) for stop in stops)
    cut.end()
    firsts = [stop for stop in stops if stop in whole and whole.find(stop) == min(ends)]
    if not ends:
        assert "".join(seen) == whole
        assert not cut.stopped
    else:
        assert cut.stopped
        # with several stop strings the one that is complete first ends the text
        assert whole.startswith("".join(seen))
        assert any(whole[len("".join(seen)) :].startswith(stop) for stop in stops) or firsts


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    seen: list[str] = []
    cut = StopText(["END"], seen.append)
    for piece in ("one E", "N", "x two EN"):
        cut.feed(piece)
    assert seen == ["one ", "ENx two "]
    cut.end()
    assert "".join(seen) == "one ENx two EN"


def test_another_text_begins_anew() -> None:
    seen: list[str] = []
    cut = StopText(["."], seen.append)
    cut.feed("a.b")
    cut.restart()
    cut.feed("c")
    cut.end()
    assert seen == ["a", "c"]
    assert before_stop("x. y", ["y", "."]) == ("x", True)
