"""The command line in this process."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from safeswitch.cli import main as module


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; gives its exit code and what it wrote to standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["safeswitch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            module.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run
