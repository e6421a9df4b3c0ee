"""Splits hold groups together, keep proportions, and depend on nothing but content and seed."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Example, Message
from safeswitch.data.leakage import leaks
from safeswitch.data.splits import fit_split, grouped_split
from safeswitch.data.text import normalise

WORDS = [
    "river",
    "lamp",
    "stone",
    "cloud",
    "apple",
    "engine",
    "paper",
    "garden",
    "window",
    "bridge",
    "copper",
]


def example(
    i: int, prompt: str | None = None, *, group: str = "", label: str = "safe", source: str = "s"
) -> Example:
    return Example(
        str(i), (Message("user", prompt or f"prompt {i}"),), label, group=group, source=source
    )  # type: ignore[arg-type]


def ids(parts: dict[str, list[Example]]) -> dict[str, list[str]]:
    return {name: [e.id for e in part] for name, part in parts.items()}


def test_each_label_and_source_is_divided_in_proportion() -> None:
    rows = [example(i, label="unsafe" if i % 3 else "safe", source=f"s{i % 4}") for i in range(600)]
    parts = grouped_split(rows, seed=1)
    for name, share in (("train", 0.6), ("validation", 0.2), ("calibration", 0.2)):
        counts = Counter((e.label, e.source) for e in parts[name])
        whole = Counter((e.label, e.source) for e in rows)
        assert all(abs(counts[s] - share * whole[s]) <= 2 for s in whole)


def test_groups_and_equal_prompts_stay_together_even_through_chains() -> None:
    rows = [example(i, group=f"g{i // 5}") for i in range(100)]
    rows += [example(100 + i, f"PROMPT  {i}!", group=f"h{i // 2}") for i in range(0, 100, 10)]
    parts = grouped_split(rows)
    side = {e.id: name for name, part in parts.items() for e in part}
    for a in rows:
        for b in rows:
            if a.group == b.group or normalise(a.prompt) == normalise(b.prompt):
                assert side[a.id] == side[b.id]


def test_order_does_not_matter_but_the_seed_does() -> None:
    rows = [example(i) for i in range(50)]
    shuffled = random.Random(3).sample(rows, len(rows))
    as_sets = [
        {n: set(x) for n, x in ids(grouped_split(r, seed=s)).items()}
        for r, s in ((rows, 0), (shuffled, 0))
    ]
    assert as_sets[0] == as_sets[1]
    assert (
        ids(grouped_split(rows, seed=0))
        == ids(grouped_split(rows, seed=0))
        != ids(grouped_split(rows, seed=1))
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(0, 5))
def test_every_example_lands_once_and_groups_never_straddle(groups: list[int], seed: int) -> None:
    rows = [example(i, group=f"g{g}" if g else "") for i, g in enumerate(groups)]
    try:
        parts = grouped_split(rows, {"a": 0.5, "b": 0.5}, seed)
    except DataError:
        assert len({e.group or e.id for e in rows}) < 4
        return
    assert sorted(i for x in ids(parts).values() for i in x) == sorted(e.id for e in rows)
    assert not {e.group for e in parts["a"] if e.group} & {e.group for e in parts["b"]}


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.0, "b": 1.0}])
def test_wrong_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(SettingError, match="fractions"):
        grouped_split([example(1)], fractions)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="5 examples in 1 groups"):
        grouped_split([example(i, group="g") for i in range(5)])


def test_normal_form_keeps_letters_of_every_script_and_symbols_only_when_alone() -> None:
    assert normalise("  Héllo,\tWORLD!  ") == "héllo world"
    assert normalise("ＡＢＣ") == "abc"
    assert normalise("คุณทำได้ไหม?") == normalise("คุณทำได้ไหม")
    assert normalise("?!") != normalise("!!")


def test_exact_and_near_duplicates_are_found_and_others_are_not() -> None:
    train = [
        example(i, f"How do I {w} the old {w} in my house tomorrow?") for i, w in enumerate(WORDS)
    ]
    asked = "Please write a long and friendly letter to my aunt about the weather in the north of the country"
    train.append(example(99, asked))
    test = [
        example(200, "how do i RIVER the old river in my house tomorrow"),
        example(201, asked.replace("aunt", "aumt")),
        example(202, "Something that nobody asked before, at all."),
    ]
    found = leaks(train, test)
    assert [(x.train_id, x.test_id, x.kind) for x in found] == [
        ("0", "200", "exact"),
        ("99", "201", "near"),
    ]
    assert 0.8 <= found[1].overlap < 1
    assert leaks(train, test[2:]) == []


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[:6], k=draw.randint(1, 9))) for _ in range(120)]
    train, test = (
        [example(i, t) for i, t in enumerate(texts[:60])],
        [example(i, t) for i, t in enumerate(texts[60:])],
    )
    grams = lambda t: {t[i : i + 5] for i in range(max(1, len(t) - 4))}  # noqa: E731
    expected = {}
    for b in test:
        best = max(
            len(grams(a.prompt) & grams(b.prompt)) / len(grams(a.prompt) | grams(b.prompt))
            for a in train
        )
        if best >= 0.7:
            expected[b.id] = pytest.approx(best)
    assert {x.test_id: x.overlap for x in leaks(train, test, threshold=0.7)} == expected


@pytest.mark.slow
def test_ten_thousand_against_ten_thousand_takes_seconds() -> None:
    draw = random.Random(0)
    vocabulary = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9)))
        for _ in range(3000)
    ]
    rows = [example(i, " ".join(draw.choices(vocabulary, k=18))) for i in range(20_000)]
    start = time.perf_counter()
    assert leaks(rows[:10_000], rows[10_000:]) == []
    assert time.perf_counter() - start < 60


def with_parts(*names: str | None) -> list[Example]:
    return [
        Example(
            f"e{i}",
            (Message("user", f"request {i}"),),
            "safe",
            meta={"split": name} if name else {},
        )
        for i, name in enumerate(names)
    ]


def test_rows_that_all_name_their_part_are_divided_as_they_say_and_held_ones_left_out() -> None:
    parts = fit_split(with_parts("calibration", "train", "held", "train", "validation"))
    assert {name: [e.id for e in part] for name, part in parts.items()} == {
        "train": ["e1", "e3"],
        "validation": ["e4"],
        "calibration": ["e0"],
    }


@pytest.mark.parametrize("odd", [None, "test", "train"])
def test_parts_are_drawn_where_the_rows_do_not_name_all_three(odd: str | None) -> None:
    named = ["train"] * 9 if odd == "train" else ["train", "validation", "calibration"] * 3
    rows = with_parts(*named, odd)
    assert fit_split(rows, seed=3) == grouped_split(rows, seed=3)
