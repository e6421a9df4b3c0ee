"""The examples in the package's docstrings come out as they stand there."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"


def modules_with_examples() -> list[str]:
    """Names of the modules that hold ``>>> ``."""
    found: list[str] = []
    for path in sorted((SRC / "safeswitch").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(SRC).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_come_out_as_written(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0, f"{name} holds '>>> ', but doctest finds no example in it"
    assert result.failed == 0


def test_there_are_examples() -> None:
    assert modules_with_examples()
