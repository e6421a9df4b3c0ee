"""Records are kept, or the write fails aloud; none is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from safeswitch.core.errors import SettingError
from safeswitch.serving import audit, spool
from safeswitch.serving.audit import Audit, AuditError
from safeswitch.serving.settings import VARIABLE, ServerSettings
from safeswitch.serving.spool import Spool


def record(i: int) -> dict[str, Any]:
    return {
        "request_id": f"r{i}", "choice": 0, "bundle": "default", "bundle_id": "ab" * 8,
        "policy": "enforce", "fired": i % 2 == 0, "stage": "stage1", "token_index": 0,
        "scores": "{}", "thresholds": "{}", "error": None, "text_sha256": "0" * 64, "text": None,
    }  # fmt: skip


def ids(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [
            row[0]
            for row in connection.execute("select request_id from safeswitch_decisions order by id")
        ]


def held(path: Path, table: str = "waiting") -> list[Any]:
    """What the buffer's table holds: records where they can be read, raw bytes where not."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(spool._TABLES)
        found = [row[0] for row in connection.execute(f"select row from {table} order by id")]
    return [json.loads(row) if table == "waiting" else row for row in found]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_table_of_an_earlier_version_is_given_the_columns_that_it_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.db"
    first = Audit(f"sqlite:///{path}")
    first.write({**record(0), "at": 0.0})
    first.close()
    later = ("category", "categories", "severity", "act", "policy_id")
    with closing(sqlite3.connect(path)) as connection:
        for name in later:
            connection.execute(f"alter table safeswitch_decisions drop column {name}")
        connection.commit()
    store = Audit(f"sqlite:///{path}")
    store.write({**record(1), "at": 1.0, "category": "cyber", "policy_id": "ab"})
    found = list(store.export())
    store.close()
    assert [(r["request_id"], r["category"], r["policy_id"]) for r in found] == [
        ("r0", None, None),
        ("r1", "cyber", "ab"),
    ]
    assert "has been given category" in caplog.text


def test_records_come_back_in_order_and_old_ones_can_be_forgotten(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    for i in range(5):
        store.write({**record(i), "at": float(i)})
    assert [r["request_id"] for r in store.export(since=2.0)] == ["r2", "r3", "r4"]
    assert [r["request_id"] for r in store.latest(2)] == ["r4", "r3"]
    assert [r["request_id"] for r in store.latest(9, since=3.0)] == ["r4", "r3"]
    assert store.forget(before=3.0) == 3
    assert [r["request_id"] for r in store.export()] == ["r3", "r4"]
    store.close()


def test_sqlite_writes_ahead(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    store.write(record(0))
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    store.close()


def test_a_reader_that_closes_takes_nothing_from_those_who_write(tmp_path: Path) -> None:
    """It deletes the write-ahead log if it finds no lock of anybody else's."""
    path = tmp_path / "a.db"
    store = Audit(f"sqlite:///{path}")
    count = "select count(*) from safeswitch_decisions"
    script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(*c.execute(sys.argv[2])); c.close()"
    seen = []
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            list(pool.map(lambda i: store.write(record(i)), range(20)))
            reader = [sys.executable, "-c", script, str(path), count]
            seen.append(subprocess.run(reader, capture_output=True, text=True, check=True).stdout)
    store.close()
    assert seen == ["(20,)\n", "(40,)\n", "(60,)\n"]


def test_without_a_buffer_a_database_that_is_down_blocks(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'absent' / 'a.db'}")
    with pytest.raises(AuditError, match="cannot be written"):
        store.write(record(0))
    store.close()


def test_buffered_records_are_written_back_in_order_once(tmp_path: Path) -> None:
    folder, waiting = tmp_path / "later", tmp_path / "waiting.db"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=waiting)
    store.write(record(0))
    store.write(record(1))
    assert [row["request_id"] for row in held(waiting)] == ["r0", "r1"]
    folder.mkdir()
    store.write(record(2))
    store.write(record(3))
    assert ids(folder / "a.db") == ["r0", "r1", "r2", "r3"]
    assert held(waiting) == held(waiting, "damaged") == []
    store.close()


def test_a_full_buffer_blocks(tmp_path: Path) -> None:
    store = Audit(
        f"sqlite:///{tmp_path / 'absent' / 'a.db'}", buffer=tmp_path / "b.db", buffer_limit=500
    )
    store.write(record(0))
    with pytest.raises(AuditError, match=r"holds \d+ bytes of waiting .* it may hold 500"):
        store.write(record(1))
    assert len(held(tmp_path / "b.db")) == 1
    store.close()


def test_a_record_that_was_written_back_before_a_crash_is_not_there_twice(tmp_path: Path) -> None:
    folder, waiting = tmp_path / "later", tmp_path / "waiting.db"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=waiting)
    store.write(record(0))
    left = waiting.read_bytes()
    folder.mkdir()
    store.write(record(1))
    waiting.write_bytes(left)
    store.write(record(2))
    assert ids(folder / "a.db") == ["r0", "r1", "r2"]
    assert held(waiting) == held(waiting, "damaged") == []
    store.close()


NEVER: dict[str, Any] = {
    "a number out of range": {"choice": 2**70},
    "a lone surrogate": {"request_id": "\ud800"},
    "a wrong type": {"scores": ["a"]},
    "a missing value": {"bundle": None},
    "an unknown column": {"colour": 1},
    "no number": {"at": float("nan")},
    "deep nesting": {"scores": json.loads("[" * 900 + "]" * 900)},
}


@pytest.mark.parametrize("wrong", NEVER.values(), ids=NEVER)
def test_what_the_database_never_takes_is_put_aside_and_stops_nothing(
    tmp_path: Path, wrong: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """While the database is down, and while it is there."""
    folder, waiting = tmp_path / "later", tmp_path / "waiting.db"
    store = Audit(f"sqlite:///{folder / 'a.db'}", buffer=waiting)
    for row in (record(0), {**record(1), **wrong}, record(2)):
        store.write(row)
    folder.mkdir()
    store.write(record(3))
    store.write({**record(4), **wrong})
    store.write(record(5))
    assert ids(folder / "a.db") == ["r0", "r2", "r3", "r5"]
    assert [len(held(waiting, table)) for table in ("waiting", "damaged")] == [0, 2]
    assert "an audit record is damaged" in caplog.text
    store.check()
    store.close()


def test_without_a_buffer_a_record_that_cannot_be_kept_is_an_error_of_the_audit(
    tmp_path: Path,
) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}")
    for wrong in NEVER.values():
        with pytest.raises(AuditError):
            store.write({**record(0), **wrong})
    store.write(record(1))
    assert ids(tmp_path / "a.db") == ["r1"]
    store.close()


OLD_LINES = [
    b'{"torn": ', b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"record": 3, "at": 1.0}',
    b'{"record": "x", "at": 1' + b"0" * 5000 + b"}",
    b'{"record": "\\ud800", "at": 1.0}',
]  # fmt: skip
OLD_ROWS = [
    {"request_id": None},
    {"choice": 2**70},
    {"request_id": "\ud800"},
    {"at": float("inf"), "fired": "x"},
]


@pytest.mark.parametrize("named", ["b.jsonl", "b.db"])
def test_what_waited_in_a_file_of_lines_is_taken_over_once(tmp_path: Path, named: str) -> None:
    old = tmp_path / "b.jsonl"
    rows: list[dict[str, Any]] = [
        {**record(i), "record": f"n{i}", "at": float(i)} for i in range(2)
    ]
    rows += [
        {**record(9), "record": f"w{i}", "at": 1.0, **wrong} for i, wrong in enumerate(OLD_ROWS)
    ]
    good, *lines = [json.dumps(row).encode() for row in rows]
    old.write_bytes(b"\n".join([good, *OLD_LINES, *lines, b'{"half']))
    url = f"sqlite:///{tmp_path / 'a.db'}"
    for i in (2, 3):
        store = Audit(url, buffer=tmp_path / named)
        store.write(record(i))
        store.close()
    assert ids(tmp_path / "a.db") == ["r0", "r1", "r2", "r3"]
    aside = held(tmp_path / named, "damaged")
    assert set(OLD_LINES) < set(aside)
    assert b'{"half' in aside
    assert len(aside) == len(OLD_LINES) + 1 + len(OLD_ROWS)
    assert {p.name for p in tmp_path.iterdir()} == {"a.db", named}


def test_taking_over_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    line = json.dumps({**record(0), "record": "n", "at": 0.0}).encode()
    (tmp_path / "b.db.taking-over").write_bytes(line)
    Spool(tmp_path / "b.db", 10**6).put({**record(0), "record": "n", "at": 0.0})
    assert [row["record"] for row in held(tmp_path / "b.db")] == ["n"]
    assert not (tmp_path / "b.db.taking-over").exists()


def test_a_buffer_that_is_damaged_is_put_aside(tmp_path: Path) -> None:
    waiting = tmp_path / "b.db"
    store = Audit(f"sqlite:///{tmp_path / 'absent' / 'a.db'}", buffer=waiting)
    store.write(record(0))
    waiting.write_bytes(waiting.read_bytes()[:100] + b"\xff" * 5000)
    store.write(record(1))
    store.write(record(2))
    assert [row["request_id"] for row in held(waiting)] == ["r1", "r2"]
    assert len(list(tmp_path.glob("b.db.damaged-*"))) == 1
    store.close()


def test_databases_are_the_owners_alone(tmp_path: Path) -> None:
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}", buffer=tmp_path / "b.db")
    with store._engine.connect():
        store.write(record(0))
        files = sorted(p.name for p in tmp_path.iterdir())
        assert files == ["a.db", "a.db-shm", "a.db-wal"]
        assert {mode(tmp_path / name) for name in files} == {0o600}
    Spool(tmp_path / "b.db", 10**6).put({"record": "x"})
    assert mode(tmp_path / "b.db") == 0o600
    store.close()


def test_a_database_that_everybody_may_read_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.db").touch(0o644)
    Audit(f"sqlite:///{tmp_path / 'a.db'}").close()
    assert "may be read by everybody" in caplog.text


def test_a_locked_database_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_STATEMENT_S", 1)
    monkeypatch.setitem(audit._LIMITS, "sqlite", {"timeout": 1})
    store = Audit(f"sqlite:///{tmp_path / 'a.db'}", buffer=tmp_path / "b.db")
    store.write(record(0))
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("begin immediate")
        began = time.monotonic()
        for i in range(1, 6):
            store.write(record(i))
        assert (
            time.monotonic() - began < 2.5
        )  # one of them waited for the database, the others went by
        other.execute("rollback")
    store._not_before = 0.0
    store.write(record(6))
    assert ids(tmp_path / "a.db") == [f"r{i}" for i in range(7)]
    store.close()


def test_postgresql_is_given_time_limits() -> None:
    pytest.importorskip("psycopg")
    seen: dict[str, Any] = {}
    engine = audit._engine("postgresql+psycopg://u@127.0.0.1:1/d?connect_timeout=2")

    def connect(dialect: Any, record: Any, args: Any, options: dict[str, Any]) -> None:
        seen.update(options)
        raise OSError("not now")

    event.listen(engine, "do_connect", connect)
    with pytest.raises(OSError, match="not now"):
        engine.connect()
    assert (seen["connect_timeout"], seen["tcp_user_timeout"]) == ("2", 10_000)


def test_two_processes_share_one_buffer(tmp_path: Path) -> None:
    folder, waiting = tmp_path / "later", tmp_path / "waiting.db"
    code = (
        "import json, sys, time; from pathlib import Path; from safeswitch.serving.audit import Audit\n"
        "record = json.loads(sys.argv[4])\n"
        "store, name = Audit(sys.argv[1], buffer=Path(sys.argv[2])), sys.argv[3]\n"
        "for i in range(40):\n"
        "    store.write({**record, 'request_id': name + str(i)})\n"
        "    while i == 9 and not Path(sys.argv[2] + '.go').exists(): time.sleep(0.01)\n"
    )
    url, told = f"sqlite:///{folder / 'a.db'}", json.dumps(record(0))
    running = [
        subprocess.Popen([sys.executable, "-c", code, url, str(waiting), name, told])
        for name in "ab"
    ]
    while not waiting.exists() or len(held(waiting)) < 20:
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    folder.mkdir()
    Path(f"{waiting}.go").touch()
    assert [process.wait(60) for process in running] == [0, 0]
    store = Audit(url, buffer=waiting)
    store.write(record(0))
    store.close()
    assert sorted(ids(folder / "a.db")) == sorted(
        [f"{name}{i}" for name in "ab" for i in range(40)] + ["r0"]
    )
    assert held(waiting) == held(waiting, "damaged") == []


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


def test_after_a_failed_write_the_check_writes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    for wrong in ({"clients_may": ("all",)}, {"audit_failure": "ignore"}, {"max_body": -1}):
        with pytest.raises(SettingError):
            ServerSettings(**wrong)  # type: ignore[arg-type]
