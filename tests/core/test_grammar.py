"""What users type: paths, names and texts that hold the separators, and what can be read in two
ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import JudgeSpec, entries, judge_spec, method_parts, named_folders

METHODS = {"base", "safeswitch", "scans", "merge", "steer"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ("a",)),
        ("a, b ,c", ("a", "b", "c")),
        ('merge:x.st,"merge:a,b.st"', ("merge:x.st", "merge:a,b.st")),
        ('"a ""b"""', ('a "b"',)),
        ("a b", ("a b",)),
        (", ".join("abc"), ("a", "b", "c")),
    ],
)
def test_lists(text: str, expected: tuple[str, ...]) -> None:
    assert entries("--x", text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "entry is empty"),
        ("a,,b", "entry is empty"),
        ("a,", "entry is empty"),
        ("a, a", "'a' comes twice"),
        ('"a', "no list"),
    ],
)
def test_lists_that_leave_something_open_are_refused(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=f"--x: .*{words}"):
        entries("--x", text)


@given(
    st.lists(
        st.text(st.characters(exclude_characters='"\n\r\0', codec="utf-8"), min_size=1),
        min_size=1,
        unique=True,
    )
)
def test_quoted_entries_come_back_whatever_they_hold(names: list[str]) -> None:
    wanted = tuple(name.strip() for name in names)
    if "" in wanted or len(set(wanted)) < len(wanted):
        return
    assert entries("--x", ",".join(f'"{name}"' for name in names)) == wanted


def test_folders_with_and_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    three = named_folders("--switch", ["one", "b=two", "c.1=runs/lr=0.1/x"])
    assert three == {"default": "one", "b": "two", "c.1": "runs/lr=0.1/x"}
    assert named_folders("--switch", ["runs/lr=0.1/x"]) == {"default": "runs/lr=0.1/x"}
    assert named_folders("--switch", ["./lr=0.1"]) == {"default": "./lr=0.1"}


def test_a_folder_that_also_reads_as_name_and_folder_is_an_error_with_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named_folders("--switch", ["lr=0.1"]) == {"lr": "0.1"}
    (tmp_path / "lr=0.1").mkdir()
    both = r"'lr=0.1' is a folder here, and also reads as the folder '0.1'.*write default=lr=0.1"
    with pytest.raises(SettingError, match=both):
        named_folders("--switch", ["lr=0.1"])
    assert named_folders("--switch", ["default=lr=0.1"]) == {"default": "lr=0.1"}


@pytest.mark.parametrize(
    "texts", [["a", "b"], ["x=a", "x=b"], ["a", "default=b"], ["=a"], ["a="], [""], [" "]]
)
def test_names_that_are_taken_or_missing_are_refused(texts: list[str]) -> None:
    with pytest.raises(SettingError, match="--switch: "):
        named_folders("--switch", texts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rules", JudgeSpec("rules", "", "", {})),
        ("openai:gpt", JudgeSpec("openai", "gpt", "", {})),
        (
            "openai:m@http://h:8000/v1,budget=5",
            JudgeSpec("openai", "m", "http://h:8000/v1", {"budget": "5"}),
        ),
        ("openai:@cf/a/b@https://h/v1", JudgeSpec("openai", "@cf/a/b", "https://h/v1", {})),
        ("openai:org/m:free@https://h/v1", JudgeSpec("openai", "org/m:free", "https://h/v1", {})),
        (
            'harmbench:"/a,b=c/m","template=x,y.txt"',
            JudgeSpec("harmbench", "/a,b=c/m", "", {"template": "x,y.txt"}),
        ),
        ("llama-guard:C:\\m", JudgeSpec("llama-guard", "C:\\m", "", {})),
        ("a:m,template=x=y", JudgeSpec("a", "m", "", {"template": "x=y"})),
    ],
)
def test_judges(text: str, expected: JudgeSpec) -> None:
    assert judge_spec(text) == expected


OPEN = (
    "openai:m,lots",
    "openai:m,budget=",
    "openai:m,budget=1,budget=2",
    "harmbench:m,template=a,b.txt",
    "a:,b=c",
)


@pytest.mark.parametrize("text", OPEN)
def test_judges_that_leave_something_open_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="judge "):
        judge_spec(text)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("scans", [("scans", None)]),
        (" safeswitch + scans ", [("safeswitch", None), ("scans", None)]),
        ("nothing+scans", [("nothing", None), ("scans", None)]),
        ("a+b+c", [("a", None), ("b", None), ("c", None)]),
        ("merge:v1+v2.st", [("merge", "v1+v2.st")]),
        ("merge:a.st+scans", [("merge", "a.st"), ("scans", None)]),
        ("safeswitch+merge:a+b.st", [("safeswitch", None), ("merge", "a+b.st")]),
        ("steer:C:\\v.gguf", [("steer", "C:\\v.gguf")]),
        ("merge:a+b.st+scans", [("merge", "a+b.st"), ("scans", None)]),
        ("steer:a+merge:b", [("steer", "a"), ("merge", "b")]),
        ("merge:", [("merge", "")]),
    ],
)
def test_methods(name: str, parts: list[tuple[str, str | None]]) -> None:
    assert method_parts(name, METHODS) == parts


def test_a_file_that_reads_as_a_join_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+scans").write_text("x")
    both = r"is merge with the file 'a\+scans', which is there, or with 'a' and the action 'scans'"
    with pytest.raises(SettingError, match=both):
        method_parts("merge:a+scans", METHODS)
