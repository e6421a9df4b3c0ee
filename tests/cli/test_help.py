"""The help reads well in a terminal, every option has a text, and the shell completes words."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.cli.listed import commands

WIDTHS = (80, 100)
FIRST = 45
"""Last column in which the texts may begin."""


@pytest.mark.parametrize(
    "words", ["", "data", "keys", "policy", "audit", "nano", *sorted(commands())]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_help_keeps_to_the_width_and_leaves_most_of_it_to_the_texts(
    words: str, width: int, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = call(*words.split(), "-h")
    assert code == 0
    assert out == call(*words.split(), "--help")[1]
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    assert not any(word in out for word in ("<bool>", "range", "INTEGER", "BOOLEAN"))
    if words not in commands():
        return
    for param in commands()[words].params:
        name = max(param.opts, key=len)
        row = re.compile(rf"│[ *]+{re.escape(name)}[ ].*")
        (line,) = filter(row.match, lines)
        first = f" {param.help.split()[0]}"
        assert 0 < line.index(first, line.index(name)) <= FIRST, line


def test_every_option_and_every_command_has_a_text() -> None:
    found = commands()
    assert len(found) > 25
    for words, command in found.items():
        assert command.help, words
        for param in command.params:
            assert param.help, f"{words}: {param.opts}"
            assert "[" not in param.help, f"{words}: {param.opts}: Rich would take it as markup"


def test_long_commands_are_grouped() -> None:
    for words, command in commands().items():
        own = [param for param in command.params if not param.rich_help_panel]
        assert len(own) <= 9, words


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("safeswitch ev", ["eval"]),
        ("safeswitch nano s", ["switch", "study"]),
        ("safeswitch eval --sui", ["--suite"]),
        ("safeswitch eval --suite q", ["quick"]),
        ("safeswitch chat --dtype float", ["float32", "float16"]),
        ("safeswitch chat --conf", ["--config"]),
    ],
)
def test_the_shell_completes_commands_options_and_values(
    line: str, offered: list[str], call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SAFESWITCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    code, out, _ = call()
    assert code == 0
    assert out.split() == offered


def test_the_command_line_is_there_without_the_heavy_libraries() -> None:
    heavy = ("torch", "transformers", "sklearn", "scipy", "vllm")
    code = f"import safeswitch.cli.main, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
