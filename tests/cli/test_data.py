"""``safeswitch data``: what is shown of the starter set, and what is said of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeswitch.data import starter
from safeswitch.data.readers import read_examples


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def many(count: int) -> list[dict[str, str]]:
    topics = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}{i * i}" for i in range(count)]
    return [
        {"prompt": f"tell me about {t * 3}", "label": ("safe", "unsafe")[i % 2]}
        for i, t in enumerate(topics)
    ]


def test_list_counts_every_row_once_in_each_field_that_all_rows_have(call: Any) -> None:
    code, out, _ = call("data", "list", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["rows"] == len(starter.load())
    for field in ("kind", "category", "label", "form", "lang", "split"):
        assert sum(sum(share.values()) for share in told["counts"][field].values()) == told["rows"]
    assert told["categories"]["burglary"] == starter.categories()["burglary"].means
    assert "Breaking in and robbing" in call("data", "list")[1]


def test_show_gives_rows_with_every_value_asked_for(call: Any) -> None:
    asked = ("--kind", "languages", "--lang", "de", "--label", "unsafe", "--limit", 5)
    rows = [json.loads(line) for line in call("data", "show", *asked, "--json")[1].splitlines()]
    assert len(rows) == 5
    assert {(r["source"], r["meta"]["lang"], r["label"]) for r in rows} == {
        ("starter/languages", "de", "unsafe")
    }
    assert call("data", "show", *asked)[1].count("\n") == 5


def test_show_names_the_values_that_there_are(call: Any) -> None:
    code, _, error = call("data", "show", "--severity", "high")
    assert code == 2
    assert "--severity must be one of allow, careful, refuse, severe; got 'high'" in error


def test_what_is_exported_reads_back_and_passes_the_check(call: Any, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    assert call("data", "export", "--out", out, "--kind", "short", "--replies")[0] == 0
    rows = read_examples(out)
    assert [e.id for e in rows] == [e.id for e in starter.load() if e.source == "starter/short"]
    assert all(bool(e.reply) == e.unsafe for e in rows)
    code, told, _ = call("data", "check", out, "--budget", "0.1")
    assert code == 0
    assert f"rows: in all {len(rows)}" in told
    assert "fit: takes it" in told


def test_check_finds_repeated_and_contradicting_rows(call: Any, tmp_path: Path) -> None:
    rows = [*many(200), {"id": "a", "prompt": "Hello, you!", "label": "safe"}]
    twice = [
        {"id": "b", "prompt": "hello you", "label": "safe"},
        {"id": "c", "prompt": "Hello - you?", "label": "unsafe"},
    ]
    code, told, _ = call(
        "data", "check", write(tmp_path / "own.jsonl", [*rows, *twice]), "--budget", "0.1"
    )
    assert code == 1
    assert "repeated: 1 requests have the words and label of an earlier one: b" in told
    assert (
        "contradicting: 1 requests have the words of an earlier one, but another label: c" in told
    )


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (
            [{"prompt": f"thing {i}", "label": "safe"} for i in range(9)],
            "the 9 rows read are all safe",
        ),
        (many(60), "a budget of 0.02 needs at least 49 safe requests"),
    ],
)
def test_check_says_why_fit_would_refuse(
    call: Any, tmp_path: Path, rows: list[dict[str, str]], reason: str
) -> None:
    code, told, _ = call("data", "check", write(tmp_path / "own.jsonl", rows))
    assert code == 1
    assert "fit: refuses it" in told
    assert reason in told


def test_check_reports_unusable_rows_as_the_reader_does(call: Any, tmp_path: Path) -> None:
    code, _, error = call("data", "check", write(tmp_path / "own.jsonl", [{"prompt": "hello"}]))
    assert code == 2
    assert "line 1: field 'label' is missing" in error
