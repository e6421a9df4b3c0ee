"""A file of replies: what was cut off is gone on with and ends up as if it had never been cut."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core import lines as jsonl
from safeswitch.core.errors import ArtifactError, DataError, SafeSwitchError
from safeswitch.core.types import Example, Message, Reply
from safeswitch.engines.jsonl import Written, generate_file
from safeswitch.engines.mock import MockEngine
from safeswitch.engines.transformers.engine import TransformersEngine
from tests.switch.made import engine, fitted, model, requests
from tests.tiny import tiny_lm

ASKED = requests(11)
SAME = {"model": "m", "switch": "s"}
OPTIONS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 1.1, "seed": 3},
]


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row.pop("seconds")
    for row in (row for row in rows if "error" not in row):
        row["decision"].pop("latency_s")
        row["decision"]["scores"] = {
            name: round(score, 4) for name, score in row["decision"]["scores"].items()
        }
    return rows


class Stops(TransformersEngine):
    """Breaks down at the third batch."""

    calls = 0

    def generate(self, prompts: Sequence[Any], *args: Any, **options: Any) -> list[Reply]:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().generate(prompts, *args, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "sampled"])
def test_a_run_cut_off_in_the_middle_of_a_line_ends_up_like_an_unbroken_one(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    chosen: dict[str, Any] = {"identity": SAME, "chunk": 3, "max_new_tokens": 6, **options}
    assert generate_file(engine(), ASKED, tmp_path / "whole", fitted(), **chosen) == Written(
        11, 11, 0
    )
    with pytest.raises(KeyboardInterrupt):
        generate_file(Stops(model()), ASKED, tmp_path / "cut", fitted(), **chosen)
    content = (tmp_path / "cut").read_bytes()
    assert content.count(b"\n") == 6
    (tmp_path / "cut").write_bytes(content[:-40])
    told: list[int] = []
    assert generate_file(
        engine(), ASKED, tmp_path / "cut", fitted(), progress=told.append, **chosen
    ) == Written(6, 11, 0)
    assert told == [5, 3, 3]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert [row["id"] for row in lines(tmp_path / "cut")] == [e.id for e in ASKED]


def test_a_finished_file_is_left_as_it_is(tmp_path: Path) -> None:
    mock = MockEngine()
    assert generate_file(mock, ASKED, tmp_path / "out", identity=SAME).new == 11
    before = (tmp_path / "out").read_bytes()
    assert generate_file(mock, ASKED, tmp_path / "out", identity=SAME) == Written(0, 11, 0)
    assert (tmp_path / "out").read_bytes() == before
    assert len(mock.calls) == 1


def test_a_line_holds_request_reply_and_decision(tmp_path: Path) -> None:
    generate_file(MockEngine(), ASKED[:1], tmp_path / "out", identity=SAME)
    (row,) = (json.loads(line) for line in (tmp_path / "out").read_text().splitlines())
    first = ["id", "request", "prompt", "label", "source"]
    last = ["reply", "finish_reason", "prompt_tokens", "reply_tokens", "decision", "seconds"]
    assert list(row) == [*first, *last]
    assert (row["id"], row["reply"], row["label"]) == (
        "r0",
        f"You said: {ASKED[0].prompt}",
        "unsafe",
    )


LONG = Example("long", (Message("user", "x" * 600),))


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "sampled"])
def test_a_request_that_the_model_cannot_take_gets_a_row_with_the_reason(
    tmp_path: Path, options: dict[str, Any], chunk: int
) -> None:
    chosen: dict[str, Any] = {"identity": SAME, "max_new_tokens": 6, **options}
    told: list[int] = []
    asked = [*ASKED[:6], LONG, *ASKED[6:], replace(LONG, id="longer")]
    done = generate_file(
        engine(), asked, tmp_path / "out", fitted(), chunk=chunk, progress=told.append, **chosen
    )
    assert (done, sum(told)) == (Written(13, 13, 2), 13)
    written = [
        json.loads(line) for line in (tmp_path / "out").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["id"] for row in written] == [e.id for e in asked]
    for row in written[6::6]:
        assert list(row) == ["id", "request", "prompt", "label", "source", "error", "seconds"]
        assert (row["label"], row["error"][:20], "takes 512 in all" in row["error"]) == (
            None,
            "ContextLengthError: ",
            True,
        )
    generate_file(engine(), ASKED, tmp_path / "alone", fitted(), **chosen)
    assert [row for row in lines(tmp_path / "out") if "error" not in row] == lines(
        tmp_path / "alone"
    )
    again = generate_file(engine(), asked, tmp_path / "out", fitted(), chunk=chunk, **chosen)
    assert again == Written(0, 13, 2)


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "sampled"])
def test_requests_may_come_and_those_not_answered_may_go(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    chosen: dict[str, Any] = {"identity": SAME, "max_new_tokens": 6, "chunk": 3, **options}
    with pytest.raises(KeyboardInterrupt):
        generate_file(Stops(model()), ASKED, tmp_path / "out", fitted(), **chosen)
    other = [*requests(14)[11:], *ASKED[:6], *ASKED[8:]]
    assert generate_file(engine(), other, tmp_path / "out", fitted(), **chosen) == Written(6, 12, 0)
    generate_file(engine(), other, tmp_path / "alone", fitted(), **chosen)
    by_id = [{row["id"]: row for row in lines(tmp_path / name)} for name in ("out", "alone")]
    assert by_id[0] == by_id[1]


def other_words(example: Example) -> Example:
    return replace(example, messages=(Message("system", "Be brief."), *example.messages))


@pytest.mark.parametrize(
    "asked", [ASKED[:-1], [*ASKED[:-1], other_words(ASKED[-1])]], ids=["gone", "changed"]
)
def test_an_answered_request_that_is_gone_or_changed_is_refused(
    tmp_path: Path, asked: list[Example]
) -> None:
    generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME)
    with (tmp_path / "out").open("a") as stream:
        stream.write('{"half')
    before = (tmp_path / "out").read_bytes()
    with pytest.raises(
        ArtifactError,
        match="answers a request 'r10' that the input does not hold, or holds with other words",
    ):
        generate_file(MockEngine(), asked, tmp_path / "out", identity=SAME)
    assert (tmp_path / "out").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"identity": {**SAME, "model": "other"}}, "model"),
        ({"identity": {**SAME, "switch": "other"}}, "switch"),
        ({"max_new_tokens": 7}, "options"),
        ({"seed": 1}, "options"),
    ],
)
def test_a_run_of_another_model_switch_or_option_is_refused(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    first: dict[str, Any] = {"examples": ASKED, "identity": SAME, "max_new_tokens": 6}
    generate_file(MockEngine(), out=tmp_path / "out", **first)
    before = (tmp_path / "out").read_bytes()
    with pytest.raises(
        ArtifactError, match=f"belongs to a run with another {word}; name another file or remove it"
    ):
        generate_file(MockEngine(), out=tmp_path / "out", **{**first, **change})
    assert (tmp_path / "out").read_bytes() == before


def test_a_file_of_other_making_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("my thesis\n")
    with pytest.raises(ArtifactError, match="was not written by this command"):
        generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME)
    assert (tmp_path / "out").read_text() == "my thesis\n"


@pytest.mark.parametrize("line", ["no json", "[1]", "null", "3", "{}"])
def test_a_line_that_is_no_reply_is_refused(tmp_path: Path, line: str) -> None:
    generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME)
    (tmp_path / "out").write_text(line + "\n")
    with pytest.raises(ArtifactError, match="holds a line that is no reply"):
        generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME)


def test_a_full_disk_keeps_what_was_written_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = jsonl.os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == 3:  # the second batch: the first sync is the stamp's
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(jsonl.os, "fsync", full)
    with pytest.raises(
        ArtifactError, match="No space left on device; what was answered before is kept, run again"
    ):
        generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME, chunk=4)
    monkeypatch.undo()
    generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME, chunk=4)
    assert [row["id"] for row in lines(tmp_path / "out")] == [e.id for e in ASKED]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mock = MockEngine()
    for out in (tmp_path / "file" / "out", tmp_path):
        with pytest.raises(ArtifactError):
            generate_file(mock, ASKED, out, identity=SAME)
    assert mock.calls == []


def test_no_requests_and_an_id_used_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the input has no requests"):
        generate_file(MockEngine(), [], tmp_path / "out", identity=SAME)
    with pytest.raises(DataError, match="ids must be unique; used more than once: 'r0'"):
        generate_file(MockEngine(), [*ASKED, ASKED[0]], tmp_path / "out", identity=SAME)
    assert not any(tmp_path.iterdir())


ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
)


def test_a_request_that_the_template_refuses_gets_a_row_with_id_file_and_line(
    tmp_path: Path,
) -> None:
    refused = Example("two", (Message("user", "a"), Message("user", "b")), place="in.jsonl, line 7")
    asked = [*ASKED[:3], refused, *ASKED[3:6]]
    done = generate_file(
        TransformersEngine(tiny_lm(chat_template=ALTERNATES)),
        asked,
        tmp_path / "out",
        identity=SAME,
        max_new_tokens=4,
    )
    assert done == Written(7, 7, 1)
    (row,) = [row for row in lines(tmp_path / "out") if "error" in row]
    assert row["id"] == "two"
    assert row["error"].startswith(
        "TemplateError: 'two' (in.jsonl, line 7): the chat template of tiny-llama refuses"
    )
    assert "Roles must alternate" in row["error"]


class Breaks(MockEngine):
    """Breaks down on some requests, or on all of them after a while."""

    def __init__(self, guilty: Sequence[str], last: int = 10**6) -> None:
        super().__init__()
        self.guilty, self.last = guilty, last

    def generate(self, prompts: Sequence[Any], *args: Any, **options: Any) -> list[Reply]:
        if len(self.calls) >= self.last or any(p.id in self.guilty for p in prompts):
            raise IndexError("index out of range in self")
        return super().generate(prompts, *args, **options)


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_only_the_request_that_breaks_the_engine_is_without_reply(
    tmp_path: Path, chunk: int
) -> None:
    done = generate_file(
        Breaks(["r4", "r5", "r10"]), ASKED, tmp_path / "out", identity=SAME, chunk=chunk
    )
    assert done == Written(11, 11, 3)
    wrong = {row["id"]: row["error"] for row in lines(tmp_path / "out") if "error" in row}
    assert wrong == {
        name: f"IndexError: {name!r}: index out of range in self" for name in ("r4", "r5", "r10")
    }


def test_an_engine_that_is_broken_ends_the_run_and_fills_no_file_with_errors(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        SafeSwitchError, match=r"no request has been answered; IndexError: 'r0': index out of range"
    ):
        generate_file(Breaks([], last=0), ASKED, tmp_path / "none", identity=SAME, chunk=4)
    with pytest.raises(
        SafeSwitchError, match=r"what it answered before \('r4'\) fails too; IndexError: 'r8'"
    ):
        generate_file(Breaks([], last=2), ASKED, tmp_path / "out", identity=SAME, chunk=4)
    assert [row["id"] for row in lines(tmp_path / "out")] == [f"r{i}" for i in range(8)]
    assert generate_file(MockEngine(), ASKED, tmp_path / "out", identity=SAME, chunk=4) == Written(
        3, 11, 0
    )
