"""The commands of the command line, as a script lists them."""

from __future__ import annotations

from typing import Any

from typer.main import get_command

from safeswitch.cli.main import app


def commands() -> dict[str, Any]:
    """Every command, by its words, as ``keys add``."""
    found = {}
    left = [("", get_command(app))]
    while left:
        words, command = left.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            found[words.strip()] = command
        for name, one in (inner or {}).items():
            left.append((f"{words} {name}", one))
    return found
