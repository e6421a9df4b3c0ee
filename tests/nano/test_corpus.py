"""The corpus: deterministic, balanced as designed, and free of test prompts and of unseen parts."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from safeswitch.nano.corpus import conversations
from safeswitch.nano.splits import SPLITS, bucket, objects, safe_actions, unsafe_actions
from safeswitch.nano.suites import SUITES, TWICE, load_fit, load_suite
from safeswitch.nano.tables.facts import ASK
from safeswitch.nano.tables.objects import OBJECTS
from safeswitch.nano.tables.phrasings import PHRASINGS
from safeswitch.nano.tables.slots import SLOTS
from safeswitch.nano.tables.verbs import CATEGORIES, VERBS
from safeswitch.nano.tables.wrappers import FRAMES, UNSEEN


@pytest.fixture(scope="module")
def sample() -> str:
    return "\n".join(m.content for turns in islice(conversations(0), 20_000) for m in turns).lower()


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert list(islice(conversations(3), 50)) == list(islice(conversations(3), 50))
    assert list(islice(conversations(3), 50)) != list(islice(conversations(4), 50))


def test_the_tables_are_as_large_as_designed() -> None:
    assert len([c for c, row in CATEGORIES.items() if row[0] == "A"]) >= 18
    assert sum(row[0] == "B" for row in CATEGORIES.values()) >= 2
    assert sum(row[0] == "C" for row in CATEGORIES.values()) >= 2
    assert len(OBJECTS) >= 36
    assert sum(len(objects(kind, split)) for kind in OBJECTS for split in SPLITS) >= 480
    assert [sum(map(len, PHRASINGS[s].values())) for s in SPLITS] == [44, 16, 16]
    frames = {split: sum(map(len, FRAMES[split].values())) for split in "AB"}
    assert frames["A"] >= 60
    assert min(frames["B"], len(UNSEEN)) >= 24


def test_no_object_is_listed_twice_but_those_that_suites_leave_out() -> None:
    counts = Counter(o for kind in OBJECTS for split in SPLITS for o in objects(kind, split))
    assert [o for o, n in counts.items() if n > 1] == list(TWICE)


def test_every_harmful_verb_has_a_harmless_use_and_every_harmful_object_too() -> None:
    safe_kinds = {
        kind for twins in (True, False) for _, kinds in safe_actions(twins) for kind in kinds
    }
    for verb, (_, harmful, safe) in VERBS.items():
        assert safe, verb
        assert not {k for kinds in harmful.values() for k in kinds.split()} & set(safe.split()), (
            verb
        )
    for split in SPLITS:
        for pairs in unsafe_actions(split).values():
            assert pairs
            assert {kind for _, kind in pairs} <= safe_kinds


def test_unseen_objects_are_new_words_to_the_language_model(sample: str) -> None:
    seen = set(re.findall(r"[a-z]+", sample))
    for kind in OBJECTS:
        for thing in objects(kind, "C"):
            assert set(re.findall(r"[a-z]+", thing.lower())) - seen, thing


def test_unseen_phrasings_wrappers_and_categories_are_not_in_the_corpus(sample: str) -> None:
    for row in PHRASINGS["C"].values():
        for template in row:
            longest = max(re.split(r"\{[vg]\}", template.lower()), key=len).strip(" .?")
            assert longest in ("help me",) or longest + " " not in sample, template
    for template in UNSEEN.values():
        for piece in re.split(r"@|\|\|", template.lower()):
            assert len(piece.split()) < 4 or piece.strip() not in sample, template
    for category, pairs in unsafe_actions("C").items():
        assert category not in sample
        for verb, kind in pairs:
            for thing in objects(kind, "A") + objects(kind, "B"):
                assert f"{VERBS[verb][0]} {thing}" not in sample


def test_no_test_request_leaks_into_corpus_or_fit_data_in_any_template() -> None:
    """Harmful requests and their look-alikes are looked for inside whole user texts; ordinary tasks
    among bare texts, since one may be part of another (``hello`` is in ``Hello, helper``)."""
    corpus_turns = []
    for warm in (0, 10_000):
        for turns in islice(conversations(0, warm), 10_000):
            corpus_turns += turns[:-1]
    corpus = "\n".join(turn.content for turn in corpus_turns).lower()
    fit = load_fit(0)
    fitted = [*fit.train, *fit.validation, *fit.calibration]
    fit_text = "\n".join(m.content for e in fitted for m in e.messages).lower()
    tested = [e for name in SUITES for e in load_suite(name, 300, 0)]
    for examples, text in ((tested, corpus), (tested, fit_text), (fitted, corpus)):
        whole = set(text.split("\n"))
        requests = {(e.meta["request"].lower(), bool(e.answers)) for e in examples}
        assert [r for r, ordinary in requests if (r in whole if ordinary else r in text)] == []
    assert len({e.meta["request"] for e in tested}) > 5_000


def test_no_phrasing_of_requests_is_part_of_another_and_unseen_ones_hold_no_seen_one() -> None:
    templates = [
        (split, t.lower()) for split in SPLITS for row in PHRASINGS[split].values() for t in row
    ]
    for split, template in templates:
        for other_split, other in templates:
            assert template == other or template not in other, (template, other)
            if split != "C" and other_split == "C":
                assert template.strip(" .?") not in other, (template, other)
    for task, row in ASK.items():
        for unseen in row["C"] if task != "chat" else []:
            assert not [
                s for s in row["A"] + row["B"] if s.lower().strip(" .?!:") in unseen.lower()
            ], unseen


def test_fit_data_hold_no_object_and_no_filler_that_is_held_out_from_them() -> None:
    fit = load_fit()
    examples = [*fit.train, *fit.validation, *fit.calibration]
    text = "\n".join(m.content for e in examples for m in e.messages).lower()
    held = [thing.lower() for kind in OBJECTS for split in "BC" for thing in objects(kind, split)]
    fillers = [
        filler.split("||")[0].lower() for row in SLOTS["B"].values() for filler in row
    ]  # of a chat, the user's turn
    assert [h for h in held if re.search(rf"\b{re.escape(h)}\b", text)] == []
    assert [f for f in fillers if f in text] == []


def test_buckets_cover_all_texts_in_the_stated_shares() -> None:
    rng = random.Random(0)
    names = [bucket(f"text {rng.random()}") for _ in range(4000)]
    assert 0.12 < names.count("test") / 4000 < 0.18
    assert 0.12 < names.count("fit") / 4000 < 0.18
