"""One record per decision, in a database. Knows nothing of HTTP or engines.

SQLite (write-ahead log), PostgreSQL, or whatever SQLAlchemy has a driver for. A record is written before the reply leaves;
when the database is down the operator's choice holds: block, or a bounded file that is written back, in order, when it can
be. Several processes may share database and buffer. A record carries a name of its own, so that one that was written back
and then read from the buffer again is not there twice; what the database will never take is moved to ``<buffer>.damaged``.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from safeswitch.core.errors import SafeSwitchError, SettingError

_META = MetaData()
RECORDS = Table(
    "safeswitch_decisions", _META,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("record", String(32), nullable=False, unique=True),
    Column("at", Float, nullable=False, index=True),
    Column("request_id", String(128), nullable=False, index=True),
    Column("client", String(128)),
    Column("choice", Integer, nullable=False),
    Column("bundle", String(128), nullable=False),
    Column("bundle_id", String(32), nullable=False),
    Column("policy", String(16), nullable=False),
    Column("fired", Boolean, nullable=False),
    Column("stage", String(16), nullable=False),
    Column("token_index", Integer, nullable=False),
    Column("scores", Text, nullable=False),
    Column("thresholds", Text, nullable=False),
    Column("error", Text),
    Column("text_sha256", String(64), nullable=False),
    Column("text", Text),
)  # fmt: skip


_FIELDS = {column.name for column in RECORDS.columns} - {"id"}
_PROBE: dict[str, Any] = {
    "request_id": "probe", "choice": 0, "bundle": "", "bundle_id": "", "policy": "", "fired": False, "stage": "",
    "token_index": 0, "scores": "x" * 512, "thresholds": "", "text_sha256": "",
}  # fmt: skip
"""Written and deleted again to see whether the database takes anything."""
_AT_ONCE = 500
_ROW_BYTES = 512
_log = logging.getLogger("safeswitch.server")


class AuditError(SafeSwitchError):
    """A decision could not be put on record."""


class Audit:
    """The audit store.

    Args:
        url: SQLAlchemy URL.
        buffer: File for records while the database is down; None blocks instead.
        buffer_limit: Most bytes in that file.

    Raises:
        SettingError: not a URL of SQLAlchemy, or its driver is not installed.
    """

    def __init__(self, url: str, *, buffer: Path | None = None, buffer_limit: int = 64 << 20) -> None:
        self._engine = _engine(url)
        self._buffer, self._limit, self._ready = buffer, buffer_limit, False
        self._lock, self._making, self._down = threading.Lock(), threading.Lock(), False

    def check(self) -> None:
        """Find out, before there is anything to record, whether a record would be kept.

        A database is asked for something, and after a failed write also made to write: a full disk can still be read.

        Raises:
            AuditError: neither the database nor the buffer would take it.
        """
        try:
            self._prepare()
            with self._engine.connect() as connection:
                connection.execute(select(RECORDS.c.id).limit(1)).first()
            if self._down:
                probe = {**_PROBE, "record": uuid.uuid4().hex, "at": time.time()}
                self._insert([probe])
                with self._engine.begin() as connection:
                    connection.execute(RECORDS.delete().where(RECORDS.c.record == probe["record"]))
                self._is_down(False)
        except (SQLAlchemyError, OSError) as error:
            self._has_room(_ROW_BYTES, error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Put one record (the columns of ``RECORDS`` but ``id``, ``record`` and ``at``) into the store, or into the buffer.

        Raises:
            AuditError: neither took it.
        """
        row = {"record": uuid.uuid4().hex, "at": time.time(), **record}
        with self._alone():
            try:
                self._write_back()
                self._insert([row])
                self._is_down(False)
            except (SQLAlchemyError, OSError) as error:
                self._is_down(True, error)
                self._keep(row, error)

    def _is_down(self, down: bool, error: Exception | None = None) -> None:
        """Take note of how the last write went; the log is told of changes alone."""
        if down and not self._down:
            _log.error("the audit database cannot be written: %s", error)
        elif self._down and not down:
            _log.warning("the audit database can be written again")
        self._down = down

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The buffer for oneself, among threads and processes, where there is one."""
        if self._buffer is None:
            yield
            return
        with self._lock, ExitStack() as stack:
            # where no lock can be made no buffer can be either, and the database alone is asked
            with suppress(OSError):
                stack.enter_context(FileLock(f"{self._buffer}.lock", poll_interval=0.005))
            yield

    def _prepare(self) -> None:
        """Make the table where there is none; another process may be making it at this moment."""
        with self._making:
            if self._ready:
                return
            try:
                _META.create_all(self._engine)
            except SQLAlchemyError:
                _META.create_all(self._engine)
            self._ready = True

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        self._prepare()
        with self._engine.begin() as connection:
            connection.execute(insert(RECORDS), rows)

    def _write_back(self) -> None:
        """Move what waits in the buffer into the database, which is there."""
        if self._buffer is None or not self._buffer.exists():
            return
        rows, damaged = [], []
        for line in filter(None, self._buffer.read_bytes().splitlines()):
            row = _parsed(line)
            damaged += [line] if row is None else []
            rows += [] if row is None else [row]
        known: set[str] = set()
        self._prepare()
        with self._engine.begin() as connection:
            for start in range(0, len(rows), _AT_ONCE):
                names = [row["record"] for row in rows[start : start + _AT_ONCE]]
                known |= set(connection.execute(select(RECORDS.c.record).where(RECORDS.c.record.in_(names))).scalars())
        for row in rows:
            if row["record"] in known:
                continue
            try:
                self._insert([row])
                if self._down:
                    _log.warning("the audit database can be written again")
                self._down = False
            except (DataError, IntegrityError) as error:
                _log.error("audit record %s cannot be written: %s", row["record"], type(error).__name__)
                damaged.append(json.dumps(row).encode())
        if damaged:
            _log.error("%d audit records are damaged; see %s.damaged", len(damaged), self._buffer)
            with Path(f"{self._buffer}.damaged").open("ab") as file:
                file.write(b"".join(line + b"\n" for line in damaged))
        self._buffer.unlink()

    def _keep(self, row: Mapping[str, Any], error: Exception) -> None:
        line = json.dumps(row).encode() + b"\n"
        buffer = self._has_room(len(line), error)
        try:
            with buffer.open("ab+") as file:
                before = file.seek(0, os.SEEK_END)
                file.seek(max(0, before - 1))
                torn = before > 0 and file.read(1) != b"\n"
                try:
                    file.write(b"\n" + line if torn else line)
                    file.flush()
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as second:
            raise AuditError("neither the audit database nor its buffer can be written") from second

    def _has_room(self, size: int, error: Exception) -> Path:
        """The buffer, if it can take ``size`` bytes more.

        Raises:
            AuditError: there is none, or it is full.
        """
        if self._buffer is None:
            raise AuditError(f"the audit database cannot be written: {type(error).__name__}") from error
        held = self._buffer.stat().st_size if self._buffer.exists() else 0
        if held + size > self._limit:
            raise AuditError(f"the audit database cannot be written, and its buffer holds {held} bytes already") from error
        return self._buffer

    def export(self, *, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Records from ``since`` (Unix seconds) on, oldest first."""
        self._prepare()
        with self._engine.begin() as connection:
            for row in connection.execute(select(RECORDS).where(RECORDS.c.at >= since).order_by(RECORDS.c.id)):
                yield dict(row._mapping)

    def count(self, *, before: float) -> int:
        """How many records are older than ``before`` (Unix seconds)."""
        self._prepare()
        with self._engine.connect() as connection:
            asked = select(func.count()).select_from(RECORDS).where(RECORDS.c.at < before)
            return int(connection.execute(asked).scalar_one())

    def forget(self, *, before: float) -> int:
        """Delete records older than ``before`` (Unix seconds); returns how many."""
        self._prepare()
        with self._engine.begin() as connection:
            return int(connection.execute(RECORDS.delete().where(RECORDS.c.at < before)).rowcount)

    def close(self) -> None:
        self._engine.dispose()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A buffered record; None where the line is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"record", "at"} <= set(row) <= _FIELDS else None


def _engine(url: str) -> Engine:
    try:
        engine = create_engine(url, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingError(f"audit: {url!r} is no URL of a database that can be used here: {error}") from error
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wal(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA busy_timeout=10000")

    return engine
