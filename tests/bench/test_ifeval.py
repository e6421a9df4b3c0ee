"""IFEval: replies that follow their instructions and replies that do not, by the checks of
lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.bench import BenchSettings, load_suite
from safeswitch.bench.benchmark import MissingError
from safeswitch.bench.judges.base import make_judge
from safeswitch.bench.judges.ifeval import IFEval
from safeswitch.core.types import Example, Message
from tests.bench.made import logged


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IFEval:
    """The judge, with a sentence splitter that knows no abbreviation."""
    for package in ("lm_eval", "langdetect", "immutabledict", "nltk"):
        pytest.importorskip(
            package, reason=f"{package} is not installed (pip install 'safeswitch[harness]')"
        )
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    return IFEval()


def said(judge: IFEval, reply: str, *asked: tuple[str, dict[str, Any]]) -> tuple[bool | None, str]:
    meta = {
        "instructions": json.dumps([name for name, _ in asked]),
        "kwargs": json.dumps([kwargs for _, kwargs in asked]),
    }
    example = Example("i", (Message("user", "Tell me of bread."),), "safe", meta=meta)
    (verdict,) = judge.judge([logged(example, reply)])
    return verdict.correct, verdict.note


WORDS = ("length_constraints:number_words", {"relation": "at least", "num_words": 5})
CASES: list[tuple[tuple[str, dict[str, Any]], str, str]] = [
    (("punctuation:no_comma", {}), "Flour and water.", "Flour, water."),
    (WORDS, "One two three four five.", "One two three four."),
    (
        ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}),
        "One. Two.",
        "One. Two. Three.",
    ),
    (("keywords:existence", {"keywords": ["oven", "salt"]}), "An oven and salt.", "An oven."),
    (("keywords:forbidden_words", {"forbidden_words": ["oven"]}), "Bake it.", "Use the oven."),
    (
        ("change_case:english_lowercase", {}),
        "the bread is in the oven.",
        "The bread is in the oven.",
    ),
    (("detectable_format:json_format", {}), '{"a": 1}', "a: 1"),
    (("detectable_format:title", {}), "<<Bread>>\nFlour.", "Bread\nFlour."),
    (
        ("startend:end_checker", {"end_phrase": "That is all."}),
        "Flour. That is all.",
        "Flour. That was all.",
    ),
    (
        ("language:response_language", {"language": "de"}),
        "Das Brot ist im Ofen und es ist warm.",
        "The bread is in the oven.",
    ),
]


@pytest.mark.parametrize(("instruction", "good", "bad"), CASES, ids=[case[0][0] for case in CASES])
def test_each_instruction_tells_a_reply_that_follows_it_from_one_that_does_not(
    judge: IFEval, instruction: tuple[str, dict[str, Any]], good: str, bad: str
) -> None:
    assert said(judge, good, instruction) == (True, "")
    assert said(judge, bad, instruction) == (False, f"not followed: {instruction[0]}")


def test_a_reply_is_right_when_all_is_followed_and_settings_that_are_not_given_do_not_count(
    judge: IFEval,
) -> None:
    comma = ("punctuation:no_comma", {"num_words": None, "keywords": None})
    assert said(judge, "One two three four five.", comma, WORDS) == (True, "")
    assert said(judge, "One, two three four.", comma, WORDS) == (
        False,
        f"not followed: {comma[0]}, {WORDS[0]}",
    )
    assert said(judge, "", comma) == (False, f"not followed: {comma[0]}")


def test_without_what_it_judges_with_the_benchmark_is_missing_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nltk")
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(MissingError, match=r"python -m nltk\.downloader punkt_tab"):
        make_judge("ifeval")
    row = {"prompt": "x", "instructions": [], "kwargs": []}
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "oktest.csv").write_text("prompt\nHow?\n")
    loaded, missing = load_suite(
        BenchSettings("own", ("ifeval", "oktest"), data=tmp_path), say=lambda text: None
    )
    assert [one.benchmark.name for one in loaded] == ["oktest"]
    assert list(missing) == ["ifeval"]
