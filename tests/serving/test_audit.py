"""Records are kept, or the write fails aloud; none is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from safeswitch.core.errors import SettingError
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.settings import VARIABLE, ServerSettings


def record(i: int) -> dict[str, Any]:
    return {
        "request_id": f"r{i}", "choice": 0, "bundle": "default", "bundle_id": "ab", "policy": "enforce", "fired": i % 2 == 0,
        "stage": "stage1", "token_index": 0, "scores": "{}", "thresholds": "{}", "error": None, "text_sha256": "0" * 64,
        "text": None,
    }  # fmt: skip


def ids(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        return [row[0] for row in connection.execute("select request_id from safeswitch_decisions order by id")]


def test_records_come_back_in_order_and_old_ones_can_be_forgotten(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    for i in range(5):
        store.write({**record(i), "at": float(i)})
    assert [r["request_id"] for r in store.export(since=2.0)] == ["r2", "r3", "r4"]
    assert store.forget(before=3.0) == 3
    assert [r["request_id"] for r in store.export()] == ["r3", "r4"]
    store.close()


def test_sqlite_writes_ahead(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    store.write(record(0))
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    store.close()


def test_without_a_buffer_a_database_that_is_down_blocks(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'absent' / 'a.db'}")
    with pytest.raises(AuditError, match="cannot be written"):
        store.write(record(0))
    store.close()


def test_buffered_records_are_written_back_in_order_once(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=tmp_path / "waiting.jsonl")
    store.write(record(0))
    store.write(record(1))
    assert len((tmp_path / "waiting.jsonl").read_text().splitlines()) == 2
    folder.mkdir()
    store.write(record(2))
    store.write(record(3))
    assert ids(folder / "a.db") == ["r0", "r1", "r2", "r3"]
    assert not (tmp_path / "waiting.jsonl").exists()
    store.close()


def test_a_full_buffer_blocks(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'absent' / 'a.db'}", buffer=tmp_path / "b.jsonl", buffer_limit=500)
    store.write(record(0))
    with pytest.raises(AuditError, match="buffer holds"):
        store.write(record(1))
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 1
    store.close()


def test_a_record_that_was_written_back_before_a_crash_is_not_there_twice(tmp_path: Path) -> None:
    folder, waiting = tmp_path / "later", tmp_path / "waiting.jsonl"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=waiting)
    store.write(record(0))
    left = waiting.read_bytes()
    folder.mkdir()
    store.write(record(1))
    waiting.write_bytes(left)
    store.write(record(2))
    assert ids(folder / "a.db") == ["r0", "r1", "r2"]
    store.close()


def test_damaged_lines_are_put_aside_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder, waiting = tmp_path / "later", tmp_path / "waiting.jsonl"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=waiting)
    store.write(record(0))
    poisoned = json.dumps({**json.loads(waiting.read_bytes()), "record": "p", "request_id": None}).encode()
    bad = [b'{"torn": ', b"\xff\xfe", b"[1]", poisoned]
    with waiting.open("ab") as file:
        file.write(b"\n".join(bad) + b'\n{"torn"')
    bad.insert(3, b'{"torn"')
    store.write(record(2))
    folder.mkdir()
    store.write(record(1))
    assert ids(folder / "a.db") == ["r0", "r2", "r1"]
    assert (tmp_path / "waiting.jsonl.damaged").read_bytes().splitlines() == bad
    assert not waiting.exists()
    store.close()


def test_two_processes_share_one_buffer(tmp_path: Path) -> None:
    folder, waiting = tmp_path / "later", tmp_path / "waiting.jsonl"
    code = (
        "import sys; from pathlib import Path; from safeswitch.serving.audit import Audit\n"
        "from tests.serving.test_audit import record\n"
        "store = Audit(sys.argv[1], buffer=Path(sys.argv[2]))\n"
        "for i in range(40): store.write({**record(i), 'request_id': sys.argv[3] + str(i)})\n"
    )
    url = f"sqlite:///{folder / 'a.db'}"
    running = [subprocess.Popen([sys.executable, "-c", code, url, str(waiting), name]) for name in "ab"]
    time.sleep(0.5)
    folder.mkdir()
    assert [process.wait(60) for process in running] == [0, 0]
    store = Audit(url, buffer=waiting)
    store.write(record(0))
    store.close()
    assert sorted(ids(folder / "a.db")) == sorted([f"{name}{i}" for name in "ab" for i in range(40)] + ["r0"])


def test_whether_records_would_be_kept_is_known_beforehand(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'absent' / 'a.db'}"
    buffer = tmp_path / "b"
    for store, kept in (
        (Audit(url), False), (Audit(url, buffer=buffer), True), (Audit(url, buffer=buffer, buffer_limit=9), False),
    ):  # fmt: skip
        if kept:
            store.check()
        else:
            with pytest.raises(AuditError):
                store.check()
        store.close()


def test_many_first_writers_make_one_table(tmp_path: Path) -> None:
    stores = [Audit(f"sqlite:///{tmp_path / 'a.db'}") for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: stores[i % 4].write(record(i)), range(32)))
    assert sorted(ids(tmp_path / "a.db")) == sorted(f"r{i}" for i in range(32))
    for store in stores:
        store.close()


def test_after_a_failed_write_the_check_writes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk, which can still be read."""
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    store.check()
    with monkeypatch.context() as patch:

        def full(self: Audit, rows: Any) -> None:
            raise OSError("no space left")

        patch.setattr(Audit, "_insert", full)
        store.check()
        with pytest.raises(AuditError):
            store.write(record(0))
        with pytest.raises(AuditError):
            store.check()
    store.check()
    store.write(record(1))
    assert ids(tmp_path / "a.db") == ["r1"]
    store.close()


def test_settings_travel_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert ServerSettings.from_environment() == ServerSettings()
    given = ServerSettings(clients_may=("observe",), audit="sqlite:///x.db", audit_failure="buffer")
    monkeypatch.setenv(VARIABLE, "")
    given.export()
    assert ServerSettings.from_environment() == given
    for text in ("[", '{"colour": 1}', "3"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(SettingError, match=VARIABLE):
            ServerSettings.from_environment()
    for wrong in ({"clients_may": ("all",)}, {"audit_failure": "ignore"}, {"max_body": 0}):
        with pytest.raises(SettingError):
            ServerSettings(**wrong)  # type: ignore[arg-type]
