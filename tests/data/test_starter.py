"""The starter set: its floors; form, wrapper, language and length say nothing of the label."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Example
from safeswitch.data import starter
from safeswitch.data.refusal_text import refuses
from safeswitch.data.text import normalise

ROOT = Path(__file__).parents[2]
BESIDE = [parent / "shared" / "data" for parent in ROOT.parents]
SHARED = next((folder for folder in BESIDE if folder.is_dir()), None)
ROWS = starter.load()
UNSAFE = [e for e in ROWS if e.unsafe]
SAFE = [e for e in ROWS if not e.unsafe]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The script that writes the files."""
    spec = importlib.util.spec_from_file_location(
        "starter_build", ROOT / "dev" / "starter" / "build.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def texts(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        yield from texts(list(value.values()))


def words(example: Example) -> str:
    return " / ".join(f"{m.role} {normalise(m.content)}" for m in example.messages)


def test_the_files_are_what_the_tables_give(build: ModuleType) -> None:
    shipped = {
        path.name: path.read_text(encoding="utf-8") for path in starter.FOLDER.glob("*.jsonl")
    }
    assert shipped == build.files()
    assert sum(len(text.encode()) for text in shipped.values()) < 10e6


def test_there_is_as_much_as_is_promised() -> None:
    harms = Counter(e.category for e in UNSAFE)
    assert len(UNSAFE) >= 1500
    assert len(SAFE) >= len(UNSAFE)
    assert len(harms) >= 30
    assert min(harms.values()) >= 20
    assert set(harms) == set(starter.categories())
    assert {e.meta["severity"] for e in UNSAFE} == {"severe", "refuse", "careful"}
    assert {e.meta.get("severity", "allow") for e in SAFE} == {"allow"}


def test_no_request_stands_there_twice() -> None:
    assert max(Counter(e.id for e in ROWS).values()) == 1
    assert [text for text, count in Counter(map(words, ROWS)).items() if count > 1] == []


def test_every_unsafe_request_has_a_safe_partner_in_the_same_form_and_dress() -> None:
    def dressed(rows: list[Example]) -> Counter[tuple[str, str, str, str]]:
        return Counter((e.group, e.meta["form"], e.wrapper, e.meta["lang"]) for e in rows)

    assert dressed(UNSAFE) == dressed([e for e in SAFE if e.category == "look-alike"])
    assert {e.meta["contrast"] for e in SAFE if e.category == "look-alike"} == set(
        starter.categories()
    )


@pytest.mark.parametrize(
    "feature",
    [
        lambda e: e.meta["form"],
        lambda e: e.wrapper,
        lambda e: e.meta["lang"],
        lambda e: e.meta["split"],
    ],
    ids=["form", "wrapper", "language", "split"],
)
def test_it_says_nothing_about_the_label(feature: Callable[[Example], str]) -> None:
    labels = defaultdict(list)
    for example in ROWS:
        labels[feature(example)].append(example.unsafe)
    skewed = {name: round(statistics.mean(found), 2) for name, found in labels.items()}
    assert {name: share for name, share in skewed.items() if not 0.3 <= share <= 0.7} == {}


def test_length_says_nothing_about_the_label() -> None:
    unsafe, safe = (sorted(len(e.prompt) for e in rows) for rows in (UNSAFE, SAFE))
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        one, other = unsafe[int(share * len(unsafe))], safe[int(share * len(safe))]
        assert 0.8 < one / other < 1.25, f"quantile {share}: {one} and {other} characters"


def test_nobody_can_be_reached_by_what_stands_there() -> None:
    address = re.compile(
        r"https?:|www\.|\b[\w.]+@[\w-]+\.\w|\+\d{5,}|\b\d{3,}[-/ ]\d{3,}[-/ ]\d{2,}\b"
    )
    assert [e.id for e in ROWS for m in e.messages if address.search(m.content)] == []


def test_held_rows_share_no_group_no_phrasing_and_no_frame_with_the_others(
    build: ModuleType,
) -> None:
    held = starter.load(["held"])
    others = starter.load(["train", "validation", "calibration"])
    assert len(held) + len(others) == len(ROWS)
    assert {e.group for e in held}.isdisjoint(e.group for e in others)
    assert {e.wrapper for e in held if e.wrapper}.isdisjoint(e.wrapper for e in others)
    own = [
        p.template.split("{")[0]
        for p in build.phrasings()
        if p.held and len(p.template.split("{")[0]) > 12
    ]
    seen = [
        e.id
        for e in others
        for beginning in own
        if e.source == "starter/pairs" and e.prompt.startswith(beginning)
    ]
    assert seen == []


def test_a_group_lies_in_one_split() -> None:
    splits = defaultdict(set)
    for example in ROWS:
        splits[example.group].add(example.meta["split"])
    assert max(len(found) for found in splits.values()) == 1
    assert set.union(*splits.values()) == set(starter.SPLITS)


def test_an_unknown_split_is_named_with_those_that_there_are() -> None:
    with pytest.raises(
        SettingError, match="'train', 'validation', 'calibration', 'held'; got 'test'"
    ):
        starter.load(["test"])


def test_every_category_has_refusals_that_read_as_such_and_offer_something() -> None:
    for name, category in starter.categories().items():
        assert 3 <= len(set(category.refusals)) <= 6, name
        assert category.means.endswith("."), name
        for text in category.refusals:
            assert refuses(text), text
            assert text.count(".") + text.count(";") >= 2, text


def test_a_refusal_speaks_the_language_of_the_request_and_of_its_category() -> None:
    burglary = starter.categories()["burglary"].refusals
    english = next(e for e in UNSAFE if e.category == "burglary" and e.meta["lang"] == "en")
    german = next(e for e in UNSAFE if e.category == "burglary" and e.meta["lang"] == "de")
    assert starter.refusal_for(english) in burglary
    assert "Straftat" in starter.refusal_for(german)
    assert starter.refusal_for(replace(english, meta={})) in burglary
    assert refuses(starter.refusal_for(replace(english, category="unheard of")))
    assert starter.refusal_for(english) == starter.refusal_for(english)
    assert (
        len(
            {
                starter.refusal_for(e)
                for e in UNSAFE
                if e.category == "burglary" and e.meta["lang"] == "en"
            }
        )
        == 3
    )
    with pytest.raises(DataError, match="is labelled safe"):
        starter.refusal_for(SAFE[0])


def test_every_language_has_refusals_of_its_own() -> None:
    by_language = {e.meta["lang"]: starter.refusal_for(e) for e in UNSAFE}
    assert len(set(by_language.values())) == len(by_language) >= 15


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("kill a process", "killing a process"),
        ("get a permit", "getting a permit"),
        ("lie to him", "lying to him"),
        ("make tea", "making tea"),
        ("open a door", "opening a door"),
        ("see it", "seeing it"),
        ("draw", "drawing"),
        ("stop a leak", "stopping a leak"),
        ("free a bird", "freeing a bird"),
        ("offer tea", "offering tea"),
    ],
)
def test_the_ing_form(build: ModuleType, action: str, expected: str) -> None:
    assert build.gerund(action) == expected


@pytest.mark.skipif(SHARED is None, reason="no folder shared/data beside the repository")
def test_no_row_stands_in_a_public_set_or_shares_eight_words_in_a_row_with_one() -> None:
    own = {}
    for example in ROWS:
        said = normalise(example.prompt).split()
        own.update({" ".join(said[i : i + 8]): example.id for i in range(max(1, len(said) - 7))})
    found = set()
    assert SHARED
    for path in sorted(SHARED.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").strip().split("\n"):
            for text in texts(json.loads(line)):
                said = normalise(text).split()
                grams = {" ".join(said[i : i + 8]) for i in range(max(1, len(said) - 7))}
                found |= {own[gram] for gram in grams if gram in own}
    assert found == set()
