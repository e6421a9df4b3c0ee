"""``--config file.yaml``: what it gives, what it refuses, and the file that a run leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import typer
import yaml
from typer.testing import CliRunner

from safeswitch.cli.command import add
from safeswitch.cli.config import RENAMED, flags_of, option_keys, write_config
from safeswitch.core.errors import SettingError
from safeswitch.serving.keys import read_keys
from safeswitch.serving.transformers import server as transformers_server
from tests.cli.listed import commands


@dataclass(frozen=True)
class Numbers:
    """A group with one option of each type."""

    panel: ClassVar[str] = "Numbers"

    count: Annotated[int, typer.Option(min=1, help="A count.")]
    size: Annotated[float, typer.Option(help="A size.")] = 0.5
    word: Annotated[str, typer.Option("--in", help="A word.")] = "a"
    more: Annotated[list[str] | None, typer.Option("--more", help="Words.")] = None
    loud: Annotated[bool, typer.Option(help="Aloud.")] = True
    where: Annotated[Path | None, typer.Option(help="A place.")] = None


@pytest.fixture
def given() -> list[tuple[str, Numbers]]:
    return []


@pytest.fixture
def run(given: list[tuple[str, Numbers]], tmp_path: Path) -> Any:
    """Runs a command of its own, which leaves its options in ``tmp_path / "run"``."""

    def try_it(
        context: typer.Context,
        name: Annotated[str, typer.Argument(help="A name.")],
        numbers: Numbers,
    ) -> None:
        """Keep what was given."""
        given.append((name, numbers))
        write_config(context, tmp_path / "run")

    def other() -> None:
        """Nothing."""

    made = typer.Typer()
    add(made, try_it, "try")
    add(made, other)

    def call(*words: object) -> Any:
        return CliRunner().invoke(made, ["try", *map(str, words)])

    return call


def write(folder: Path, text: str) -> Path:
    path = folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_option_works_under_its_old_name_on_the_command_line_and_in_a_file(
    run: Any, given: list[tuple[str, Numbers]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RENAMED, "number", "count")
    assert "note: number is called count now" in run("x", "--number", 2).output
    assert "note: number is called count now" in run("x", "--number=2").output
    file = write(tmp_path, "number: 2")
    assert "note: number is called count now" in run("x", "--config", file).output
    assert given == [("x", Numbers(2))] * 3
    twice = run("x", "--config", write(tmp_path, "number: 2\ncount: 3"))
    assert "'count' gives 'count' a second time" in str(twice.exception)


def test_options_and_arguments_come_from_the_file(
    run: Any, given: list[tuple[str, Numbers]], tmp_path: Path
) -> None:
    text = "name: x\ncount: 3\nsize: 2\nin: b c\nmore: [d, e]\nloud: false\nwhere: f/g\n"
    assert run("--config", write(tmp_path, text)).exit_code == 0
    assert given == [("x", Numbers(3, 2.0, "b c", ["d", "e"], False, Path("f/g")))]


def test_the_command_line_wins_over_the_file(
    run: Any, given: list[tuple[str, Numbers]], tmp_path: Path
) -> None:
    file = write(tmp_path, "name: x\ncount: 3\nmore: [d, e]\nloud: false\nin: b\n")
    assert run("y", "--count", 4, "--more", "z", "--loud", "--config", file).exit_code == 0
    assert given == [("y", Numbers(4, 0.5, "b", ["z"], True))]


def test_the_file_that_a_run_leaves_gives_the_same_options_again(
    run: Any, given: list[tuple[str, Numbers]], tmp_path: Path
) -> None:
    words = ("x: y", "--count", 7, "--size", 1e-05, "--in", "no", "--more", "1", "--more", "ü")
    assert run(*words, "--no-loud", "--where", "a/b").exit_code == 0
    first = (tmp_path / "run" / "try.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(first) == {
        "name": "x: y", "count": 7, "size": 1e-05, "in": "no", "more": ["1", "ü"], "loud": False,
        "where": "a/b",
    }  # fmt: skip
    assert run("--config", tmp_path / "run" / "try.yaml").exit_code == 0
    same = Numbers(7, 1e-05, "no", ["1", "ü"], False, Path("a/b"))
    assert given == [("x: y", same), ("x: y", same)]
    assert (tmp_path / "run" / "try.yaml").read_text(encoding="utf-8") == first


def test_defaults_are_left_too_and_what_has_no_value_is_not(run: Any, tmp_path: Path) -> None:
    assert run("x", "--count", 1).exit_code == 0
    left = yaml.safe_load((tmp_path / "run" / "try.yaml").read_text(encoding="utf-8"))
    assert left == {"name": "x", "count": 1, "size": 0.5, "in": "a", "loud": True}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cuont: 3", "unknown key 'cuont'; did you mean 'count'?; allowed: count, in, loud, "),
        ("no-loud: true", "unknown key 'no-loud'"),
        ("config: a.yaml", "unknown key 'config'"),
        ("help: true", "unknown key 'help'"),
        ("count: three", "count must be a whole number; got 'three'"),
        ("count: true", "count must be a whole number; got True"),
        ("count: 1.5", "count must be a whole number; got 1.5"),
        ("count:", "count must be a whole number; got None"),
        ("count: 0", "count: "),
        ("size: big", "size must be a number; got 'big'"),
        ("in: 3", "in must be a text; got 3"),
        ("in: no", "in must be a text; got False"),
        ("loud: 'yes'", "loud must be true or false; got 'yes'"),
        ("where: [a]", "where must be a path; got ['a']"),
        ("more: a", "more must be a list, each a text; got 'a'"),
        ("more: [a, 1]", "more must be a text; got 1"),
        ("[count]", "must hold `key: value` lines"),
        ("1: 2", "the key 1 must be a text"),
        ("count: [", "is no YAML"),
        ("count: 1\nin: a\ncount: 2", "line 3: the key 'count' comes twice"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_name(
    text: str, told: str, run: Any, given: list[Any], tmp_path: Path
) -> None:
    file = write(tmp_path, text)
    error = run("x", "--config", file).exception
    assert isinstance(error, SettingError)
    assert str(file) in str(error)
    assert told in str(error)
    assert given == []


def test_a_file_that_cannot_be_read_is_told(run: Any, tmp_path: Path) -> None:
    error = run("x", "--count", 1, "--config", tmp_path / "none.yaml").exception
    assert isinstance(error, SettingError)
    assert "none.yaml cannot be read" in str(error)


def test_two_groups_with_an_option_of_one_name_cannot_be_one_command() -> None:
    def twice(first: Numbers, second: Numbers) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="count"):
        add(typer.Typer(), twice)


@pytest.mark.parametrize("words", sorted(commands()))
def test_every_command_takes_a_file_and_refuses_an_unknown_key(
    words: str, call: Any, tmp_path: Path
) -> None:
    file = write(tmp_path, "no-such-option: 1\n")
    if words == "serve":
        return  # hands what it does not know to the engine; see below
    code, _, error = call(*words.split(), "--config", file)
    assert code == 2
    assert f"{file}: unknown key 'no-such-option'" in error.replace("\n", "")
    known = option_keys(commands()[words].params)
    assert all(key in error for key in known)


def test_a_key_is_made_from_a_file(call: Any, tmp_path: Path) -> None:
    rights = "may: [observe]\nscores: true\nrate: 60/minute\n"
    file = write(tmp_path, f"name: reader\nfile: {tmp_path / 'keys.json'}\n{rights}")
    code, key, _ = call("keys", "add", "--config", file, "--rate", "5/minute")
    assert (code, bool(key.strip())) == (0, True)
    (client,) = read_keys(tmp_path / "keys.json").values()
    assert (client.name, client.rate, client.scores) == ("reader", "5/minute", True)


@pytest.mark.slow
def test_an_evaluation_leaves_its_options_and_is_resumed_from_them(
    call: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("--model", "nano", "--benchmark", "nano_jailbroken", "--limit", 2, "--out", run)
    assert call("eval", *words, "--batch-size", 2)[0] == 0
    left = yaml.safe_load((run / "eval.yaml").read_text(encoding="utf-8"))
    assert (left["model"], left["batch-size"], left["limit"]) == ("nano", 2, 2)
    assert (left["benchmark"], left["out"], left["seed"]) == (["nano_jailbroken"], str(run), 0)
    rows = {path: path.read_bytes() for path in run.rglob("replies/**/*.jsonl")}
    assert call("eval", "--config", run / "eval.yaml")[0] == 0
    assert {path: path.read_bytes() for path in run.rglob("replies/**/*.jsonl")} == rows
    code, _, error = call("eval", "--config", run / "eval.yaml", "--limit", 3)
    assert (code, "another limit" in error.replace("\n", " ")) == (2, True)
    assert yaml.safe_load((run / "eval.yaml").read_text(encoding="utf-8")) == left
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["identity"]["limit"] == 2


def test_serve_hands_keys_of_the_engine_on(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(transformers_server, "serve", lambda *given: started.append(given))
    text = "model: nano\nswitch: [nano]\nengine: transformers\npolicy: observe\nport: 9\n"
    file = write(tmp_path, text)
    assert call("serve", "--config", file)[0] == 0
    assert call("serve", "--config", file, "--policy", "off", "--port", 10)[0] == 0
    found = [(guard.policy, settings.port) for _, guard, _, settings, _ in started]
    assert found == [("observe", 9), ("off", 10)]
    code, _, error = call("serve", "--config", write(tmp_path, text + "prot: 8\n"))
    assert code == 2
    assert "unknown key 'prot'; did you mean 'port'?" in error.replace("\n", "")


def test_keys_become_flags_of_another_program() -> None:
    given = {"port": 8, "enforce-eager": True, "chunked": False, "ids": [1, 2], "more": {"a": [1]}}
    assert flags_of(given) == [
        "--port", "8", "--enforce-eager", "--no-chunked", "--ids", "1", "2", "--more", '{"a": [1]}',
    ]  # fmt: skip
