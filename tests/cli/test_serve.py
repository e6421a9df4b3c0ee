"""`safeswitch serve` starts the engine that is asked for, with the settings that were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safeswitch.cli import options
from safeswitch.cli import serve as command
from safeswitch.cli.main import app
from safeswitch.core.errors import SettingError
from safeswitch.nano import switch_path, weights_path
from safeswitch.serving.transformers import server as transformers_server

NANO = ["serve", "--model", "nano", "--switch", "nano"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr(transformers_server, "serve", lambda *given: calls.append(given))
    return calls


def test_flags_after_those_of_the_guard_go_to_the_engine(
    started: list[Any], tmp_path: Path
) -> None:
    own = [
        "--engine",
        "transformers",
        "--port",
        "9",
        "--batch-size",
        "4",
        "--policy",
        "observe",
        "--max-tokens",
        "50",
    ]
    result = CliRunner().invoke(app, [*NANO, *own], catch_exceptions=False)
    assert result.exit_code == 0
    where, guard, server, settings, load = started[0]
    assert (where, load) == (weights_path(), {"dtype": "auto"})
    assert (settings.name, settings.port, settings.batching.batch_size) == ("nano", 9, 4)
    assert (guard.policy, dict(guard.bundles), server.max_tokens) == (
        "observe",
        {"default": str(switch_path())},
        50,
    )


def test_where_vllm_is_absent_transformers_is_taken_and_said(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, NANO, catch_exceptions=False)
    assert "engine: transformers" in result.output
    assert len(started) == 1


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingError, match="'transformers', 'vllm'"):
        CliRunner().invoke(app, [*NANO, "--engine", "magic"], catch_exceptions=False)


def test_flags_of_vllm_go_through_as_they_stand_behind_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(command, "_run", lambda *given: calls.append(given))
    flags = ["--tensor-parallel-size", "2", "-O3", "--enforce-eager", "--port=9"]
    words = [*NANO, "--engine", "vllm", *flags, "--policy", "observe"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    file = tmp_path / "options.yaml"
    file.write_text("port: 8\nmax-model-len: 512\npolicy: 'off'\n")
    words += ["--config", str(file), "--", "--config", "vllm.yaml"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert [(engine, guard.policy) for engine, _, guard, _, _ in calls] == [("vllm", "observe")] * 2
    assert calls[0][4] == flags
    of_file = ["--port", "8", "--max-model-len", "512"]
    assert calls[1][4] == [*of_file, *flags, "--config", "vllm.yaml"]
