"""The model under test on the command line: at a server, in vLLM, and what each refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeswitch.bench.log import RunLog
from tests.bench.chat_server import chat_server

SERVER = ("--url", "http://127.0.0.1:9/v1", "--served-model", "m")


def test_a_server_is_measured_like_a_model_and_the_run_is_resumed(
    call: Any, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> str:
        seen.append(body)
        return "I can't help with that."

    out = tmp_path / "run"
    with chat_server(answer) as url:
        command = ("eval", "--url", url, "--served-model", "m", "--out", out)
        chosen = ("--benchmark", "nano_plain_unsafe", "--benchmark", "nano_lookalike")
        code, _, error = call(*command, *chosen, "--limit", 3)
        assert code == 0, error
        assert len(seen) == 6
        code, _, error = call(*command, *chosen, "--limit", 3)
        assert code == 0, error
        assert len(seen) == 6
    log = RunLog.open(out)
    assert log.manifest["identity"]["model"] == log.manifest["model"]["id"] == "m"
    assert log.manifest["identity"]["engine"] == url
    rows = log.rows("base", "nano_plain_unsafe")
    assert [row.reply for row in rows] == ["I can't help with that."] * 3
    assert all(row.judgements["rules"].refused and row.reply_tokens == 10 for row in rows)
    figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
    assert figures["tables"]["rates"]
    code, printed, error = call("report", out, "--by", "category")
    assert code == 0, error
    categories = {row["category"] for row in figures["tables"]["category"]}
    assert len(categories) > 1
    assert all(category in printed for category in categories)
    code, _, error = call("report", out, "--by", "colour")
    assert "must be one of" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("eval", "--out", "run"), "give --model, or --url with --served-model"),
        (("eval", "--model", "nano", *SERVER, "--out", "run"), "not both"),
        (("eval", *SERVER[:2], "--out", "run"), "go together"),
        (("eval", *SERVER, "--dtype", "float32", "--out", "run"), "--dtype would have no effect"),
        (("eval", *SERVER, "--switch", "nano", "--out", "run"), "runs its own guard or none"),
        (
            ("compare", *SERVER, "--methods", "base,scans", "--out", "run"),
            "method 'scans' needs the model's hidden states",
        ),
        (
            ("compare", "--model", "nano", "--engine", "vllm", "--methods", "scans", "--out", "r"),
            "method 'scans' does not run in vLLM",
        ),
        (
            ("compare", "--model", "nano", "--engine", "vllm", "--methods", "head", "--out", "r"),
            "method 'head' has to be fitted",
        ),
        (("attack", *SERVER, "--attacks", "gcg", "--out", "run"), "attacks gcg: they search"),
        (
            ("eval", "--model", "nano", "--vllm-args", "{}", "--out", "run"),
            "--vllm-args would have no effect",
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(
    words: tuple[str, ...], told: str, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = call(*words)
    assert code == 2
    assert told in " ".join(error.split())
    assert not list(tmp_path.iterdir())
