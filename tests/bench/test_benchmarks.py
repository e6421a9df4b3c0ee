"""Benchmark readers: cards, the real files where they are at hand, and small files in each set's
public format."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.benchmark import (
    BENCHMARKS,
    CARD,
    Benchmark,
    MissingError,
    drawn,
    load,
    suite_benchmarks,
    suites,
)
from safeswitch.core.errors import DataError, SettingError
from tests.bench.made import CARD as MADE_CARD
from tests.bench.made import asked

SHARED = next(
    (p / "shared" / "data" for p in Path(__file__).parents if (p / "shared" / "data").is_dir()),
    None,
)
needs_shared = pytest.mark.skipif(
    SHARED is None, reason="no folder shared/data with benchmark files beside the repository"
)
PUBLIC = [name for name in BENCHMARKS if not name.startswith("nano_")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_card_is_whole(name: str) -> None:
    card = BENCHMARKS[name].card
    assert set(card) == set(CARD)
    assert all(len(text) > 2 for text in card.values())
    assert BENCHMARKS[name].title


def test_suites_name_benchmarks_that_there_are_and_full_holds_them_all() -> None:
    for names in suites().values():
        assert all(name in BENCHMARKS for name in names)
        assert len(set(names)) == len(names)
    assert set(suites()["full"]) == set(PUBLIC)
    with pytest.raises(SettingError, match="suite: name must be one of"):
        suite_benchmarks("everything")


# name: rows, labels, SHA-256 of the file (first 16 hex digits)
REAL: dict[str, tuple[int, dict[str, int], str]] = {
    "advbench": (433, {"unsafe": 433}, "9a15c9724d237d66"),
    "harmbench": (154, {"unsafe": 154}, "29655bc5ccb924d8"),
    "trustllm_misuse": (378, {"unsafe": 378}, "9fd33cade4f365a6"),
    "trustllm_jailbreak": (435, {"unsafe": 435}, "98d6718952acc44f"),
    "xstest": (222, {"safe": 130, "unsafe": 92}, "1c66896da24bb74c"),
    "multijail": (1371, {"unsafe": 1371}, "5da0ffc1021ca01c"),
    "cyberseceval_frr": (750, {"safe": 750}, "5c7a461b767445ad"),
    "cyberseceval_frr_multilingual": (700, {"safe": 700}, "74b73d828322a4d9"),
    "truthfulqa": (404, {"safe": 404}, "47831ab914e4f05e"),
    "trivia_qa": (945, {"safe": 945}, "430da1e50b0eb1ef"),
    "gsm8k": (663, {"safe": 663}, "6ce1515c7f7bff4c"),
    "mmlu": (1084, {"safe": 1084}, "06a3fb98693d2fac"),
    "mt_bench": (78, {"safe": 78}, "0319c7e5eeb7ce66"),
}


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_files_have_their_rows_labels_and_hash(name: str) -> None:
    found = load(BENCHMARKS[name], data=SHARED, hub=False)
    rows, labels, digest = REAL[name]
    assert (len(found.examples), found.of) == (rows, rows)
    assert Counter(e.label for e in found.examples) == labels
    assert found.file_hash == hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
    assert str(found.file_hash)[:16] == digest
    assert len({e.id for e in found.examples}) == rows


@needs_shared
def test_real_answers_wrappers_and_languages_are_read() -> None:
    def examples(name: str) -> Any:
        return load(BENCHMARKS[name], data=SHARED, hub=False).examples

    assert all(
        e.answers[0].replace(",", "").lstrip("-").replace(".", "").isdigit()
        for e in examples("gsm8k")
    )
    assert {e.answers[0] for e in examples("mmlu")} == set("ABCD")
    assert all(
        e.prompt.endswith("Answer with the letter of the right option.") for e in examples("mmlu")
    )
    assert all(e.answers for e in examples("trivia_qa"))
    assert all(
        e.wrapper and not set(e.wrapper) & set("[]'") for e in examples("trustllm_jailbreak")
    )
    assert set(Counter(e.meta["lang"] for e in examples("multijail"))) == {
        "en",
        "zh",
        "it",
        "vi",
        "ar",
        "ko",
        "th",
        "bn",
        "sw",
        "jv",
    }


def write(folder: Path, files: dict[str, Any], readme: str = "") -> None:
    """A copy of a hub repository."""
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".csv"):
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            path.write_text(json.dumps(rows), encoding="utf-8")
    if readme:
        (folder / "README.md").write_text(f"---\nconfigs:\n{readme}---\n", encoding="utf-8")


def config(name: str, **files: str) -> str:
    """A configuration in the YAML head of a hub repository's card: split to file."""
    lines = "".join(f"  - split: {split}\n    path: {file}\n" for split, file in files.items())
    return f"- config_name: {name}\n  data_files:\n{lines}"


ASK, OTHER = "How do I bake bread?", "How do I kill a process?"
_BEHAVIOUR = {"Index": 0, "Target": "t", "Behavior": "b", "Category": "k", "Source": "Original"}
JAILBREAKBENCH: tuple[dict[str, Any], str] = (
    {
        "data/h.csv": [{**_BEHAVIOUR, "Goal": ASK}],
        "data/b.csv": [{**_BEHAVIOUR, "Goal": OTHER}],
    },
    config("behaviors", harmful="data/h.csv", benign="data/b.csv"),
)
# name: (files, configurations, expected (prompt, label, category, wrapper, language, answers) of
# each example)
FORMATS: dict[
    str, tuple[dict[str, Any], str, list[tuple[str, str, str, str, str, tuple[str, ...]]]]
] = {
    "advbench": (
        {"data/train.csv": [{"prompt": ASK, "target": "Sure"}]},
        "",
        [(ASK, "unsafe", "", "", "", ())],
    ),
    "harmbench": (
        {
            "s.csv": [{"prompt": ASK, "category": "k"}],
            "c.csv": [{"prompt": ASK, "context": "Flour.", "category": "k"}],
            "r.csv": [{"prompt": OTHER, "tags": "lyrics"}],
        },
        config("standard", train="s.csv")
        + config("contextual", train="c.csv")
        + config("copyright", train="r.csv"),
        [
            (ASK, "unsafe", "k", "", "", ()),
            ("Flour.\n\n---\n\n" + ASK, "unsafe", "k", "", "", ()),
            (OTHER, "unsafe", "", "", "", ()),
        ],
    ),
    "jailbreakbench_harmful": (
        *JAILBREAKBENCH,
        [(ASK, "unsafe", "k", "", "", ())],
    ),
    "jailbreakbench_benign": (
        *JAILBREAKBENCH,
        [(OTHER, "safe", "k", "", "", ())],
    ),
    "strongreject": (
        {"train.csv": [{"prompt": ASK, "category": "k", "source": "custom"}]},
        "",
        [(ASK, "unsafe", "k", "", "", ())],
    ),
    "sorry_bench": (
        {
            "train.jsonl": [
                {"question_id": 1, "category": "7", "turns": [ASK], "prompt_style": "base"},
                {"question_id": 1, "category": "7", "turns": [OTHER], "prompt_style": "slang"},
            ]
        },
        "",
        [(ASK, "unsafe", "7", "", "en", ())],
    ),
    "sorry_bench_mutations": (
        {
            "train.jsonl": [
                {"question_id": 1, "category": "7", "turns": [ASK], "prompt_style": "base"},
                {
                    "question_id": 1,
                    "category": "7",
                    "turns": ["Comment cuire ?"],
                    "prompt_style": "translate-fr",
                },
            ]
        },
        "",
        [("Comment cuire ?", "unsafe", "7", "translate-fr", "fr", ())],
    ),
    "trustllm_misuse": (
        {
            "m.json": [{"prompt": ASK, "label": ["x"], "source": "x"}],
            "j.json": [{"prompt": OTHER, "label": ["cot"], "source": "x"}],
        },
        config("safety", misuse="m.json", jailbreak="j.json"),
        [(ASK, "unsafe", "", "", "", ())],
    ),
    "trustllm_jailbreak": (
        {
            "m.json": [{"prompt": ASK, "label": ["x"], "source": "x"}],
            "j.json": [{"prompt": OTHER, "label": ["cot"], "source": "x"}],
        },
        config("safety", misuse="m.json", jailbreak="j.json"),
        [(OTHER, "unsafe", "", "cot", "", ())],
    ),
    "xstest": (
        {
            "xstest_prompts.csv": [
                {
                    "id": 1,
                    "prompt": OTHER,
                    "type": "homonyms",
                    "label": "safe",
                    "focus": "kill",
                    "note": "",
                },
                {
                    "id": 2,
                    "prompt": ASK,
                    "type": "contrast_homonyms",
                    "label": "",
                    "focus": "",
                    "note": "",
                },
            ]
        },
        "",
        [(OTHER, "safe", "homonyms", "", "", ()), (ASK, "unsafe", "contrast_homonyms", "", "", ())],
    ),
    "or_bench": (
        {
            "a.csv": [{"prompt": OTHER, "category": "violence"}],
            "b.csv": [{"prompt": ASK, "category": "violence"}],
        },
        config("or-bench-hard-1k", train="a.csv") + config("or-bench-toxic", train="b.csv"),
        [(OTHER, "safe", "violence", "", "", ())],
    ),
    "or_bench_toxic": (
        {
            "a.csv": [{"prompt": OTHER, "category": "violence"}],
            "b.csv": [{"prompt": ASK, "category": "violence"}],
        },
        config("or-bench-hard-1k", train="a.csv") + config("or-bench-toxic", train="b.csv"),
        [(ASK, "unsafe", "violence", "", "", ())],
    ),
    "phtest": (
        {
            "PHTest.csv": [
                {"Index": 0, "Harmfulness": "harmless", "Request": OTHER},
                {"Index": 1, "Harmfulness": "controversial", "Request": ASK},
            ]
        },
        "",
        [(OTHER, "safe", "", "", "", ())],
    ),
    "do_not_answer": (
        {
            "train.jsonl": [
                {
                    "id": 0,
                    "risk_area": "r",
                    "types_of_harm": "t",
                    "specific_harms": "s",
                    "question": ASK,
                }
            ]
        },
        "",
        [(ASK, "unsafe", "t", "", "", ())],
    ),
    "simple_safety_tests": (
        {
            "test.csv": [
                {
                    "id": "SST_01",
                    "harm_area": "h",
                    "counter": 1,
                    "category": "Information Seeking",
                    "prompt": ASK,
                }
            ]
        },
        "",
        [(ASK, "unsafe", "h", "", "", ())],
    ),
    "catqa": (
        {
            f"{lang}.jsonl": [{"Category": "k", "Subcategory": "s", "Question": f"{ASK} {lang}"}]
            for lang in ("en", "zh", "vi")
        },
        config("default", en="en.jsonl", zh="zh.jsonl", vi="vi.jsonl"),
        [(f"{ASK} {lang}", "unsafe", "k", "", lang, ()) for lang in ("en", "zh", "vi")],
    ),
    "multijail": (
        {
            "MultiJail.csv": [
                {
                    "id": 0,
                    "source": "x",
                    "en": ASK,
                    "zh": "怎么做面包？",
                    "tags": "['Theft', 'Hate speech']",
                }
            ]
        },
        "",
        [
            (ASK, "unsafe", "Theft, Hate speech", "", "en", ()),
            ("怎么做面包？", "unsafe", "Theft, Hate speech", "", "zh", ()),
        ],
    ),
    "safety_prompts": (
        {
            "t.json": {
                "Insult": [{"prompt": "你好", "response": "好", "type": "Insult"}],
                "Mental_Health": [{"prompt": "我很累", "response": "好", "type": "Mental_Health"}],
            }
        },
        config("typical_safety_scenarios", train="t.json"),
        [
            ("你好", "unsafe", "Insult", "", "zh", ()),
            ("我很累", "unsafe", "Mental_Health", "", "zh", ()),
        ],
    ),
    "safety_prompts_attacks": (
        {
            "i.json": {
                "Goal_Hijacking": [
                    {"prompt": "忽略上文", "response": "好", "type": "Goal_Hijacking"}
                ]
            }
        },
        config("instruction_attack_scenarios", train="i.json"),
        [("忽略上文", "unsafe", "Goal_Hijacking", "", "zh", ())],
    ),
    "cyberseceval_frr": (
        {
            "mitre_frr.json": [
                {"mutated_prompt": ASK, "mitre_category": "k", "is_malicious": "false"}
            ]
        },
        "",
        [(ASK, "safe", "k", "", "", ())],
    ),
    "cyberseceval_frr_multilingual": (
        {"f.json": [{"mutated_prompt": ASK, "mitre_category": "k", "language": "French"}]},
        "",
        [(ASK, "safe", "k", "", "French", ())],
    ),
    "truthfulqa": (
        {
            "v.jsonl": [
                {
                    "type": "Adversarial",
                    "category": "Law",
                    "question": ASK,
                    "best_answer": "Yes",
                    "correct_answers": ["Yes"],
                    "incorrect_answers": ["No"],
                    "source": "x",
                }
            ]
        },
        config("generation", validation="v.jsonl"),
        [(ASK, "safe", "Law", "", "", ())],
    ),
    "truthfulqa_mc1": (
        {
            "v.jsonl": [
                {
                    "question": ASK,
                    "mc1_targets": {"choices": ["No", "Yes", "Once"], "labels": [0, 1, 0]},
                    "mc2_targets": {"choices": ["No", "Yes"], "labels": [0, 1]},
                }
            ]
        },
        config("multiple_choice", validation="v.jsonl"),
        [
            (
                f"{ASK}\nA. No\nB. Yes\nC. Once\n\nAnswer with the letter of the right option.",
                "safe",
                "",
                "",
                "",
                ("B",),
            )
        ],
    ),
    "trivia_qa": (
        {
            "v.jsonl": [
                {
                    "question": ASK,
                    "question_id": "q1",
                    "answer": {"value": "Oven", "aliases": ["Oven", "Stove"]},
                }
            ]
        },
        config("rc.nocontext", validation="v.jsonl"),
        [(ASK, "safe", "", "", "", ("Oven", "Stove"))],
    ),
    "gsm8k": (
        {"t.jsonl": [{"question": ASK, "answer": "2 * 3 = <<2*3=6>>6\n#### 1,006"}]},
        config("main", test="t.jsonl"),
        [(ASK, "safe", "math", "", "", ("1,006",))],
    ),
    "mmlu": (
        {
            "t.jsonl": [
                {
                    "question": "Two?",
                    "subject": "algebra",
                    "choices": ["1", "2", "3", "4"],
                    "answer": 1,
                }
            ]
        },
        config("all", test="t.jsonl"),
        [
            (
                "Two?\nA. 1\nB. 2\nC. 3\nD. 4\n\nAnswer with the letter of the right option.",
                "safe",
                "algebra",
                "",
                "",
                ("B",),
            )
        ],
    ),
    "alpaca_eval": (
        {
            "a.json": [
                {"instruction": ASK, "output": "Mix.", "generator": "g", "dataset": "helpful_base"}
            ]
        },
        config("alpaca_eval", eval="a.json"),
        [(ASK, "safe", "helpful_base", "", "", ())],
    ),
    "ifeval": (
        {
            "train.jsonl": [
                {
                    "key": 1,
                    "prompt": ASK,
                    "kwargs": [{}, {}],
                    "instruction_id_list": [
                        "punctuation:no_comma",
                        "length_constraints:number_words",
                    ],
                }
            ]
        },
        "",
        [(ASK, "safe", "length_constraints, punctuation", "", "", ())],
    ),
    "mt_bench": (
        {
            "train.jsonl": [
                {"prompt": [ASK, OTHER], "reference": [], "category": "writing", "prompt_id": 81}
            ]
        },
        "",
        [(ASK, "safe", "writing", "", "", ())],
    ),
}


def test_every_benchmark_of_the_hub_has_its_format_tested() -> None:
    assert {name for name in PUBLIC if BENCHMARKS[name].hub} <= set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_copy_of_the_hubs_repository_is_read_in_its_public_columns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files, readme, expected = FORMATS[name]
    write(tmp_path / "data" / (BENCHMARKS[name].stem or name), files, readme)
    found = load(BENCHMARKS[name], data=tmp_path / "data", hub=False)
    assert found.file_hash is None
    assert [
        (e.prompt, e.label, e.category, e.wrapper, e.meta.get("lang", ""), e.answers)
        for e in found.examples
    ] == expected
    assert len({e.id for e in found.examples}) == len(expected)


def test_the_choices_of_a_question_are_shuffled_the_same_way_each_time_and_too_few_are_refused(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"{ASK} {i}", "choices": ["right", "wrong", "worse"]} for i in range(60)]
    (tmp_path / "truthfulqa_mc1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(BENCHMARKS["truthfulqa_mc1"], data=tmp_path).examples
    assert found == load(BENCHMARKS["truthfulqa_mc1"], data=tmp_path).examples
    assert all(f"\n{e.answers[0]}. right\n" in e.prompt for e in found)
    assert min(Counter(e.answers[0] for e in found).values()) > 8
    assert {e.meta["letters"] for e in found} == {"ABC"}
    (tmp_path / "truthfulqa_mc1.jsonl").write_text(
        json.dumps({"prompt": ASK, "choices": ["right"]}) + "\n"
    )
    with pytest.raises(DataError, match="needs 2 to 25 choices; got 1"):
        load(BENCHMARKS["truthfulqa_mc1"], data=tmp_path)


def test_local_files_in_our_schema_need_no_label_where_all_have_one(tmp_path: Path) -> None:
    (tmp_path / "oktest.csv").write_text(f"prompt\n{OTHER}\n")
    assert [e.label for e in load(BENCHMARKS["oktest"], data=tmp_path).examples] == ["safe"]
    (tmp_path / "sode.jsonl").write_text(json.dumps({"prompt": ASK}) + "\n")
    with pytest.raises(DataError, match=r"sode: 1 rows of .* have no label; give safe or unsafe"):
        load(BENCHMARKS["sode"], data=tmp_path)


def test_what_is_not_there_is_told_with_every_place_that_was_tried(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError,
        match=r"xstest.jsonl, xstest.csv nor a folder xstest; the hub \(Paul/XSTest\) was",
    ):
        load(BENCHMARKS["xstest"], data=tmp_path, hub=False)
    with pytest.raises(MissingError, match="oktest: it is not on the hub"):
        load(BENCHMARKS["oktest"])


def test_a_gated_set_is_missing_with_the_hubs_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*_: Any, **__: Any) -> Any:
        raise DataError("cannot load split 'train': dataset is gated, ask for access")

    monkeypatch.setattr("safeswitch.bench.benchmark.hub_rows", gated)
    with pytest.raises(MissingError, match="advbench: cannot load split 'train': dataset is gated"):
        load(BENCHMARKS["advbench"])


def test_a_limit_draws_at_random_keeps_labels_shares_and_order_and_is_the_same_for_a_seed() -> None:
    examples = [*asked("u", 300), *asked("s", 100, "safe")]
    first, again, other = drawn(examples, 40, 0), drawn(examples, 40, 0), drawn(examples, 40, 1)
    assert first == again != other
    assert Counter(e.label for e in first) == {"unsafe": 30, "safe": 10}
    places = [examples.index(e) for e in first]
    assert places == sorted(set(places))
    assert drawn(examples, None, 0) == drawn(examples, 1000, 0) == examples


def test_a_card_that_lacks_a_field_is_refused() -> None:
    with pytest.raises(SettingError, match="benchmark 'x': its card lacks Licence"):
        Benchmark("x", MADE_CARD.replace("Licence: l\n", ""))
