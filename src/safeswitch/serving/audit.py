"""One record per decision, in a database. Knows nothing of HTTP or engines.

SQLite (write-ahead log) or whatever SQLAlchemy has a driver for. A record is written before the reply leaves; when the
database is down the operator's choice holds: block, or a bounded file that is written back, in order, when it can be.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Boolean, Column, Float, Integer, MetaData, String, Table, Text, create_engine, event, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from safeswitch.core.errors import SafeSwitchError

_META = MetaData()
RECORDS = Table(
    "safeswitch_decisions", _META,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("request_id", String(128), nullable=False, index=True),
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


class AuditError(SafeSwitchError):
    """A decision could not be put on record."""


class Audit:
    """The audit store.

    Args:
        url: SQLAlchemy URL.
        buffer: File for records while the database is down; None blocks instead.
        buffer_limit: Most bytes in that file.
    """

    def __init__(self, url: str, *, buffer: Path | None = None, buffer_limit: int = 64 << 20) -> None:
        self._engine = _engine(url)
        self._buffer, self._limit = buffer, buffer_limit
        self._lock, self._ready = threading.Lock(), False

    def write(self, record: Mapping[str, Any]) -> None:
        """Put one record (the columns of ``RECORDS`` but ``id`` and ``at``) into the store, or into the buffer.

        Raises:
            AuditError: neither took it.
        """
        row = {"at": time.time(), **record}
        with self._lock:
            try:
                self._insert([*self._waiting(), row])
            except (SQLAlchemyError, OSError) as error:
                self._keep(row, error)
                return
            if self._buffer is not None:
                self._buffer.unlink(missing_ok=True)

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        if not self._ready:
            _META.create_all(self._engine)
            self._ready = True
        with self._engine.begin() as connection:
            connection.execute(insert(RECORDS), rows)

    def _waiting(self) -> list[dict[str, Any]]:
        if self._buffer is None or not self._buffer.exists():
            return []
        return [json.loads(line) for line in self._buffer.read_text(encoding="utf-8").splitlines()]

    def _keep(self, row: Mapping[str, Any], error: Exception) -> None:
        if self._buffer is None:
            raise AuditError(f"the audit database cannot be written: {type(error).__name__}") from error
        line = json.dumps(row) + "\n"
        held = self._buffer.stat().st_size if self._buffer.exists() else 0
        if held + len(line.encode()) > self._limit:
            raise AuditError(f"the audit database cannot be written, and its buffer holds {held} bytes already") from error
        try:
            with self._buffer.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as second:
            raise AuditError("neither the audit database nor its buffer can be written") from second

    def export(self, *, since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Records from ``since`` (Unix seconds) on, oldest first."""
        with self._engine.connect() as connection:
            for row in connection.execute(select(RECORDS).where(RECORDS.c.at >= since).order_by(RECORDS.c.id)):
                yield dict(row._mapping)

    def forget(self, *, before: float) -> int:
        """Delete records older than ``before`` (Unix seconds); returns how many."""
        with self._engine.begin() as connection:
            return int(connection.execute(RECORDS.delete().where(RECORDS.c.at < before)).rowcount)

    def close(self) -> None:
        self._engine.dispose()


def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _wal(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA busy_timeout=10000")

    return engine
