"""What a terminal is sent, and what files and pipes get, in real processes."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeswitch.core.shown import shown, shown_on
from safeswitch.nano import switch_path

EVIL = "a\x1b]0;title\x07\x9b2J\r\u202eb"
EVIL_SHOWN = "a\\u001b]0;title\\u0007\\u009b2J\\u000d\\u202eb"
ASCII = {"PYTHONIOENCODING": "ascii"}
SAYS = "from safeswitch.cli.screen import *; take_any_text(); "


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1", **extra}


def in_pipe(command: list[str], **extra: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, env=environment(extra), capture_output=True, timeout=300, check=False
    )


def on_terminal(command: list[str], **extra: str) -> bytes:
    """Everything that the command sends to a terminal that is both of its outputs."""
    main, sub = pty.openpty()
    with subprocess.Popen(
        command, env=environment(extra), stdout=sub, stderr=sub, stdin=subprocess.DEVNULL
    ) as process:
        os.close(sub)
        sent = b""
        while True:
            try:
                part = os.read(main, 4096)
            except OSError:  # the other end is closed
                part = b""
            if not part:
                break
            sent += part
        process.wait(timeout=300)
    os.close(main)
    return sent


def screen(code: str) -> list[str]:
    return [sys.executable, "-c", SAYS + code]


def test_text_in_any_script_is_shown_as_it_stands() -> None:
    for text in ("naïve\n\t日本語", "می\u200cخواهم", "👨\u200d👩\u200d👧", "a\u00a0b\u3000c"):
        assert shown(text) == text
    assert shown(EVIL) == EVIL_SHOWN
    assert shown("\ud800 \U000e0041") == "\\ud800 \\U000e0041"


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    assert all(
        one.isprintable() or one in "\n\t\u200c\u200d" or one.isspace() for one in shown(text)
    )
    assert not {"\x1b", "\r", "\x9b", "\u2028", "\u202e"} & set(shown(text))


def test_a_stream_that_is_no_terminal_gets_the_true_text() -> None:
    assert shown_on(io.StringIO(), EVIL) == EVIL


def test_a_terminal_is_shown_control_characters_and_not_sent_them() -> None:
    sent = on_terminal(
        screen(
            f"put({EVIL!r}); say({EVIL!r}); complain({EVIL!r}); put_markdown({EVIL!r}); put_json({EVIL!r})"
        )
    )
    assert sent.count(EVIL_SHOWN.encode()) >= 4
    assert b"\x1b]0;" not in sent
    assert b"\x07" not in sent
    assert "\x9b".encode() not in sent
    assert "\u202e".encode() not in sent


def test_a_pipe_gets_the_true_text() -> None:
    assert (
        in_pipe(screen(f"put({EVIL!r})"), PYTHONIOENCODING="utf-8").stdout == EVIL.encode() + b"\n"
    )
    assert in_pipe(screen("put('\\ud800')"), PYTHONIOENCODING="utf-8").stdout == b"\\ud800\n"


def test_without_utf8_json_is_still_json_and_text_is_escaped() -> None:
    value = {"text": "日本 \U0001f600 é", "half": "\ud800"}
    done = in_pipe(
        screen(f"put_json({value!r}); put('日本'); say('日本'); put_markdown('- 日本')"), **ASCII
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    first, second, *_ = done.stdout.decode("ascii").splitlines()
    assert json.loads(first) == value
    assert second == "\\u65e5\\u672c"


def test_inspect_needs_no_utf8_and_a_bundle_cannot_steer_the_terminal(tmp_path: Path) -> None:
    for file in switch_path().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["base_model"]["model_id"] = f"日本 {EVIL}"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "safeswitch.cli.main", "inspect", str(tmp_path)]
    done = in_pipe(command, **ASCII)
    if done.returncode == 2:  # refused as a whole, in words that hold no control character either
        assert b"model_id" in done.stderr
    else:
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
        assert b"Fitted on" in done.stdout
    sent = on_terminal(command)
    assert b"\x1b]0;title" not in sent
    assert done.returncode == 2 or b"\\u001b]0;title" in sent


def test_the_audit_is_exported_without_utf8(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from safeswitch.serving.audit import Audit

    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    store.write({
        "request_id": "r", "choice": 0, "bundle": "b", "bundle_id": "ab", "policy": "enforce", "fired": True,
        "stage": "stage1", "token_index": 0, "scores": "{}", "thresholds": "{}", "error": None, "text_sha256": "0" * 64,
        "text": "日本 \U0001f600",
    })  # fmt: skip
    store.close()
    url = f"sqlite:///{tmp_path / 'a.db'}"
    done = in_pipe(
        [sys.executable, "-m", "safeswitch.cli.main", "audit", "export", "--url", url], **ASCII
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert json.loads(done.stdout)["text"] == "日本 \U0001f600"
