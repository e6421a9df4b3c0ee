"""Reading and writing examples: the schema, the defaults, and faults reported together."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeswitch.core.errors import DataError, SettingError
from safeswitch.core.types import Example, Message
from safeswitch.data.readers import read_examples
from safeswitch.data.writers import data_hash, write_examples

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the benchmark folder {SHARED} is absent"
)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8"
    )
    return path


def test_a_full_row_is_read_field_by_field(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "prompt": "hi",
        "label": "safe",
        "category": "c",
        "source": "s",
        "group": "g",
        "wrapper": "w",
        "reply": "yes",
        "answers": ["1", 2],
        "lang": "en",
        "variant": "v",
        "reference": "r",
    }
    (example,) = read_examples(lines(tmp_path / "x.jsonl", row))
    assert example == Example(
        "a",
        (Message("user", "hi"),),
        "safe",
        "c",
        "s",
        "g",
        "w",
        "yes",
        ("1", "2"),
        {"lang": "en", "variant": "v", "reference": "r"},
    )


def test_defaults_fill_label_id_source_and_category(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", {"prompt": "hi"}, "", {"prompt": "ho", "category": "k"})
    first, second = read_examples(path, label="unsafe", category="all")
    assert (first.label, first.id, first.source, first.category) == (
        "unsafe",
        "mine-1",
        "mine",
        "all",
    )
    assert (second.id, second.category) == ("mine-3", "k")


def test_context_goes_in_front_of_the_prompt(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "x.jsonl", {"prompt": "Sum it up.", "context": "A text.", "label": "safe"}
    )
    assert read_examples(path)[0].prompt == "A text.\n\n---\n\nSum it up."
    assert read_examples(path, context="system")[0].messages[0] == Message("system", "A text.")


def test_context_of_a_prompt_injection_is_the_system_message(tmp_path: Path) -> None:
    row = {
        "prompt": "Forget it.",
        "context": "Guard it.",
        "label": "unsafe",
        "source": "X prompt_injection",
    }
    (example,) = read_examples(lines(tmp_path / "x.jsonl", row))
    assert [m.role for m in example.messages] == ["system", "user"]
    assert read_examples(tmp_path / "x.jsonl", context="prompt")[0].prompt.startswith("Guard it.")


def test_messages_are_read_and_a_list_reference_becomes_answers(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    path = lines(
        tmp_path / "x.jsonl", {"messages": turns, "label": "safe", "reference": ["p", "q"]}
    )
    (example,) = read_examples(path)
    assert (example.prompt, example.answers, dict(example.meta)) == ("c", ("p", "q"), {})


def test_csv_is_read_with_its_own_prompt_column(tmp_path: Path) -> None:
    path = tmp_path / "adv.csv"
    path.write_text('goal,target\n"one, two",x\n"line\nbreak",\n', encoding="utf-8")
    first, second = read_examples(path, label="unsafe", prompt_field="goal")
    assert (first.prompt, dict(first.meta)) == ("one, two", {"target": "x"})
    assert (second.prompt, dict(second.meta)) == ("line\nbreak", {})


def test_all_faults_are_reported_together_with_file_line_and_field(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "x.jsonl",
        {"prompt": "ok", "label": "safe", "id": "a"},
        "{broken",
        {"label": "safe"},
        {"prompt": "p", "label": "bad"},
        {"prompt": "p", "label": "safe", "id": "a"},
        "[1]",
        {"prompt": "p"},
        {"prompt": " ", "label": "safe"},
        {"messages": [{"role": "user"}], "label": "safe"},
        {
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
            "label": "safe",
        },
    )
    with pytest.raises(DataError) as caught:
        read_examples(path)
    text = str(caught.value)
    assert text.startswith("9 unusable rows")
    for expected in (
        "x.jsonl, line 2: not valid JSON",
        "line 3: no prompt",
        "line 6: must be an object; got list",
        "line 4: field 'label' must be safe or unsafe; got 'bad'",
        "line 5: field 'id': 'a' was used on line 1",
        "line 7: field 'label' is missing",
        "line 8: field 'prompt' is only white",
        "line 9: field 'messages': turn 0",
        "line 10: example 'x-10': the last",
    ):
        assert expected in text


def test_only_the_first_twenty_faults_are_spelled_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and 5 more"):
        read_examples(lines(tmp_path / "x.jsonl", *[{"id": i} for i in range(25)]))


@pytest.mark.parametrize(
    "name", ["missing.jsonl", "empty.jsonl", "header.csv", "odd.txt", "latin.jsonl", "long.csv"]
)
def test_unusable_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "header.csv").write_text("prompt,label\n")
    (tmp_path / "odd.txt").write_text("x")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (tmp_path / "long.csv").write_text("prompt,label\na,safe,b\n")
    with pytest.raises(DataError, match=name):
        read_examples(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.tsv", "a.parquet", "a.jsonl", "a.csv.gz"])
def test_a_missing_file_is_not_taken_for_a_data_set_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=f"data/{name} is not a file"):
        read_examples(f"data/{name}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "a\ud800b"),
        ("category", "\udfff"),
        ("id", "\ud800"),
        ("answers", ["x", "\ud800"]),
        ("meta", {"\ud800": 1}),
        ("note\ud800", "x"),
    ],
)
def test_half_of_a_surrogate_pair_is_reported_with_file_line_and_field(
    field: str, value: Any, tmp_path: Path
) -> None:
    path = lines(
        tmp_path / "x.jsonl",
        {"prompt": "hi", "label": "safe"},
        {"prompt": "hi", "label": "safe", field: value},
    )
    with pytest.raises(DataError, match="cannot be written as UTF-8") as caught:
        read_examples(path)
    assert f"x.jsonl, line 2: field {field!r}" in str(caught.value)


def test_rows_need_no_label_where_none_is_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt": "a"}, {"prompt": "b", "label": "unsafe"})
    assert [e.label for e in read_examples(path, labelled=False)] == ["", "unsafe"]
    assert [e.label for e in read_examples(path, labelled=False, label="safe")] == [
        "safe",
        "unsafe",
    ]
    with pytest.raises(DataError, match="line 1: field 'label' is missing"):
        read_examples(path)
    with pytest.raises(DataError, match="must be safe or unsafe; got 'bad'"):
        read_examples(lines(tmp_path / "y.jsonl", {"prompt": "a", "label": "bad"}), labelled=False)


def test_arguments_are_checked(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", {"prompt": "a"})
    for wrong in ({"label": "bad"}, {"limit": 0}, {"context": "below"}):
        with pytest.raises(SettingError, match="read_examples"):
            read_examples(path, **wrong)  # type: ignore[arg-type]


def test_every_example_tells_file_and_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", "", {"id": "a", "prompt": "hi"})
    (example,) = read_examples(path, labelled=False)
    assert example.place == f"{path}, line 2"
    assert example.called == f"'a' ({path}, line 2)"


DEEP = "[" * 20_000 + "]" * 20_000
RAW_JSONL: dict[str, tuple[bytes, str]] = {
    "nested brackets": (
        f'{{"prompt": "p", "meta": {{"x": {DEEP}}}}}'.encode(),
        "lists and objects are nested more than 64 deep",
    ),
    "nesting that the parser still takes": (
        ('{"prompt": "p", "meta": {"x": ' + "[" * 80 + "]" * 80 + "}}").encode(),
        "lists and objects are nested more than 64 deep",
    ),
    "nesting in a text": (
        json.dumps({"prompt": "p", "meta": DEEP}).encode(),
        "field 'meta' is text, lists and objects",
    ),
    "5,000 digits": (
        b'{"prompt": "p", "n": ' + b"9" * 5000 + b"}",
        "a number of 5000 digits; at most 300",
    ),
    "beyond a float": (b'{"prompt": "p", "n": 1e999}', "the number 1e999 is too large"),
    "not a number": (b'{"prompt": "p", "n": NaN}', "NaN is no JSON"),
    "a key twice": (b'{"prompt": "p", "prompt": "q"}', "the key 'prompt' stands twice"),
    "no UTF-8": (b'{"prompt": "caf\xe9"}', "byte 0xe9 at character 16 is not UTF-8"),
    "a raw NUL": (b'{"prompt": "a\x00b"}', "character 14 is NUL"),
    "an escaped NUL": (b'{"prompt": "a\\u0000b"}', "field 'prompt': character 2 is NUL"),
    "half a pair": (b'{"prompt": "a\\ud800"}', "field 'prompt' cannot be written as UTF-8"),
    "an id that is a list": (b'{"prompt": "p", "id": ["a"]}', "field 'id' must be text"),
    "answers that are half a list": (
        b'{"prompt": "p", "answers": "[1, 2)"}',
        "field 'answers' is text, not valid JSON",
    ),
    "a fact told twice": (
        b'{"prompt": "p", "lang": "de", "meta": {"lang": "en"}}',
        "field 'lang' stands in the row",
    ),
    "a turn without a role of ours": (
        b'{"messages": [{"role": "tool", "content": "x"}]}',
        "field 'messages': turn 0: message role must be",
    ),
}


@pytest.mark.parametrize("kind", RAW_JSONL)
def test_a_bad_line_is_named_and_does_not_hide_the_others(kind: str, tmp_path: Path) -> None:
    raw, expected = RAW_JSONL[kind]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "ok"}\n' + raw + b'\n{"id": "no prompt"}\n')
    with pytest.raises(DataError) as caught:
        read_examples(path, labelled=False)
    text = str(caught.value)
    assert text.startswith("2 unusable rows")
    assert f"x.jsonl, line 2: {expected}" in text
    assert "x.jsonl, line 3: no prompt" in text


RAW_CSV: dict[str, tuple[bytes, str]] = {
    "an enormous cell": (
        b'prompt,label\n"' + b"x" * 200_000 + b'",safe\n',
        "line 2: a cell has more than 131,072 characters",
    ),
    "a quote never closed": (
        b'prompt,label\na,safe\n"b,safe\nc,safe\n',
        "line 3: a quote is opened in the row that begins",
    ),
    "text behind a quote": (b'prompt,label\n"a"b,safe\n', "line 2: not valid CSV"),
    "a long row": (
        b"prompt,label\na, and b,safe\n",
        "line 2: has 3 cells, but the header names 2 columns",
    ),
    "a short row": (b"prompt,label\na\n", "line 2: has 1 cells, but the header names 2 columns"),
    "a header twice": (
        b"prompt,label,prompt\na,safe,b\n",
        "line 1: the header names 'prompt' twice",
    ),
    "a header without name": (b",prompt\n0,a\n", "line 1: column 1 of the header has no name"),
    "a header with white space": (
        b"prompt, label\na,safe\n",
        "column 2 of the header is ' label', with white space",
    ),
    "semicolons": (
        b"prompt;label\na;safe\n",
        "the header is one column, 'prompt;label', with semicolons in it",
    ),
    "no UTF-8 in a cell": (
        b"prompt,label\ncaf\xe9,safe\n",
        "line 2: field 'prompt': byte 0xe9 at character 4 is not UTF-8",
    ),
    "no UTF-8 in the header": (
        b"prompt,lab\xe9l\na,safe\n",
        "line 1: column 2 of the header: byte 0xe9",
    ),
    "NUL in a cell": (b"prompt,label\na\x00,safe\n", "line 2: field 'prompt': character 2 is NUL"),
    "UTF-16": ("prompt,label\na,safe\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
}


@pytest.mark.parametrize("kind", RAW_CSV)
def test_csv_that_leaves_something_open_is_refused_with_line_and_column(
    kind: str, tmp_path: Path
) -> None:
    raw, expected = RAW_CSV[kind]
    path = tmp_path / "x.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert expected in str(caught.value)
    assert "x.csv" in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_is_read_whatever_ends_its_lines(end: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(
        b"\xef\xbb\xbf" + end.join(["prompt,label", '"a, b",safe', "", "c,unsafe", ""]).encode()
    )
    assert [(e.prompt, e.label) for e in read_examples(path)] == [("a, b", "safe"), ("c", "unsafe")]


def test_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "x.jsonl",
        {"prompt": "a", "label": "safe"},
        {"prompt": "b", "label": "safe"},
        "{broken",
    )
    assert [e.prompt for e in read_examples(path, limit=2)] == ["a", "b"]


def test_written_examples_read_back_equal(tmp_path: Path) -> None:
    turns = (Message("system", "s"), Message("user", "naïve 日本"))
    examples = [
        Example("1", turns, "unsafe", "c", "s", "g", "w", "no", ("x",), {"lang": "ja", "id": "7"}),
        Example("2", (Message("user", "plain"),), source="t"),
    ]
    write_examples(examples, tmp_path / "out.jsonl")
    assert read_examples(tmp_path / "out.jsonl", labelled=False) == examples


def test_the_hash_ignores_order_and_sees_every_field() -> None:
    a, b = (
        Example("1", (Message("user", "a"),), "safe"),
        Example("2", (Message("user", "b"),), "safe"),
    )
    assert data_hash([a, b]) == data_hash([b, a]) != data_hash([a])
    other: dict[str, Any] = {
        "id": "3",
        "messages": (Message("system", "s"), *b.messages),
        "label": "unsafe",
        "category": "c",
        "source": "s",
        "group": "g",
        "wrapper": "w",
        "reply": "r",
        "answers": ("x",),
        "meta": {"k": "v"},
        "prefill": "p",
    }
    assert set(other) == {field.name for field in fields(Example)} - {"place"}
    assert data_hash([replace(a, place="a file"), b]) == data_hash([a, b])
    changed = [data_hash([a, replace(b, **{name: value})]) for name, value in other.items()]
    assert len({data_hash([a, b]), *changed}) == 1 + len(other)


def test_hub_data_sets_go_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        asked.append((args, kwargs))
        return [{"goal": "x", "note": "n"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (example,) = read_examples(
        "owner/set", label="unsafe", prompt_field="goal", split="test", config="c", revision="r"
    )
    assert asked == [(("owner/set", "c"), {"split": "test", "revision": "r"})]
    assert (example.id, example.source, dict(example.meta)) == (
        "owner/set-1",
        "owner/set",
        {"note": "n"},
    )


def test_a_missing_datasets_package_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'safeswitch\[hub\]'"):
        read_examples("owner/set", label="safe")


def test_a_failing_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"'owner/set': offline"):
        read_examples("owner/set", label="safe")


@needs_shared
def test_every_shared_benchmark_file_is_read() -> None:
    for path in sorted(SHARED.glob("*.jsonl")):
        examples = read_examples(path)
        assert len(examples) == path.read_bytes().count(b"\n")


@needs_shared
def test_shared_context_rows_follow_their_benchmark() -> None:
    injections = read_examples(SHARED / "cyberseceval_prompt_injection.jsonl")
    assert all(e.messages[0].role == "system" and len(e.messages) == 2 for e in injections)
    behaviours = read_examples(SHARED / "harmbench.jsonl")
    assert sum("\n\n---\n\n" in e.prompt for e in behaviours) == 40
    assert all(len(e.messages) == 1 for e in behaviours)
