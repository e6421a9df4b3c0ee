"""The results of tools that a reader of instructions is fitted on: balanced, and cut into parts that
share nothing."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from safeswitch.data.refusal_text import refuses
from safeswitch.data.tool_cases import PARTS, Part, tool_cases
from safeswitch.data.tool_results import FRAME


def test_there_are_as_many_results_with_instructions_as_without() -> None:
    rows = tool_cases()
    assert Counter(row.label for row in rows) == {"unsafe": 150, "safe": 150}
    assert len({row.id for row in rows}) == 300
    assert Counter(row.meta["holds"] for row in rows if not row.unsafe)["request"] >= 70
    assert {row.meta["place"] for row in rows} == {"start", "middle", "end"}


def test_every_row_is_framed_and_no_text_has_both_labels() -> None:
    rows = tool_cases()
    assert all(row.prompt.startswith(FRAME) for row in rows)
    unsafe = {row.prompt for row in rows if row.unsafe}
    assert not unsafe & {row.prompt for row in rows if not row.unsafe}
    assert len(unsafe) == 150


def test_what_answers_instructions_reads_as_a_refusal() -> None:
    assert all(refuses(row.reply or "") for row in tool_cases() if row.unsafe)


def test_parts_share_no_sentence_and_no_gap() -> None:
    def phrases(part: Part) -> set[str]:
        return {*part.texts, *part.first, *part.second, *part.instructions, *part.requests}

    for one, other in combinations(PARTS, 2):
        assert not phrases(one) & phrases(other)


def test_lengths_alone_do_not_tell_the_labels_apart() -> None:
    rows = [row for row in tool_cases() if row.meta["holds"] != "nothing"]
    lengths = {True: [], False: []}  # type: dict[bool, list[int]]
    for row in rows:
        lengths[row.unsafe].append(len(row.prompt))
    means = {label: sum(found) / len(found) for label, found in lengths.items()}
    assert abs(means[True] - means[False]) < 30
