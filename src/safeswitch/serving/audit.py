"""One record per decision, in a database. Knows nothing of HTTP or engines.

SQLite (write-ahead log), PostgreSQL, or whatever SQLAlchemy has a driver for. A record is written
before the reply leaves; when the database is down the operator's choice holds: block, or a bounded
buffer (:mod:`safeswitch.serving.spool`) that is written back, in order, when it can be. Several
processes may share database and buffer. A record carries a name of its own, so that one that was
written back and then read from the buffer again is not there twice; what the database will never
take is put among the buffer's damaged records. No call waits for a database longer than some
seconds.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

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
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.schema import CreateColumn

from safeswitch.core.errors import SafeSwitchError, SettingError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.serving import metrics
from safeswitch.serving.spool import FullError, Spool, make_private

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

_DAY_S = 86_400
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
    Column("category", String(32)),
    Column("categories", Text),
    Column("severity", String(16)),
    Column("act", String(16)),
    Column("policy_id", String(16)),
)  # fmt: skip
"""Columns behind ``text`` have come later: a table that is there is given those that it lacks, so
each of them may be empty."""


_FIELDS = {column.name for column in RECORDS.columns} - {"id"}
_PROBE: JsonObject = {
    "request_id": "probe", "choice": 0, "bundle": "", "bundle_id": "", "policy": "", "fired": False, "stage": "",
    "token_index": 0, "scores": "x" * 512, "thresholds": "", "text_sha256": "",
}  # fmt: skip
"""Written and deleted again to see whether the database takes anything."""
_AT_ONCE = 500
_ROW_BYTES = 512
_CONNECT_S = 5
_STATEMENT_S = 10
"""Longest that a connection, and a statement, may take."""
_SLOW_S = 0.5
_RACE = ("already exists", "duplicate", "locked")
"""What databases say where another process makes the table at the same moment."""
_FIRST_WRITERS = 4
"""Further attempts at making the table, where other processes make it at the same moment."""
_log = logging.getLogger("safeswitch.server")


def days_ago(days: float | None) -> float:
    """Unix seconds of so many days before now; None: of the beginning, before every record."""
    return 0.0 if days is None else time.time() - days * _DAY_S


class AuditError(SafeSwitchError):
    """A decision could not be put on record."""


class Audit:
    """The audit store.

    Args:
        url: SQLAlchemy URL.
        buffer: File for records while the database is down; None blocks instead.
        buffer_limit: Most bytes of records in that file.

    Raises:
        SettingError: not a URL of SQLAlchemy, or its driver is not installed.
    """

    def __init__(
        self, url: str, *, buffer: Path | None = None, buffer_limit: int = 64 << 20
    ) -> None:
        self._engine = _engine(url)
        self._spool = Spool(buffer, buffer_limit) if buffer is not None else None
        self._lock, self._making, self._ready = threading.Lock(), threading.Lock(), False
        self._down, self._not_before = False, 0.0
        _warn_of_readers(self._engine)

    def check(self) -> None:
        """Find out, before there is anything to record, whether a record would be kept.

        A database is asked for something, and after a failed write also made to write: a full disk
        can still be read.

        Raises:
            AuditError: neither the database nor the buffer would take it.
        """
        began = time.monotonic()
        try:
            self._ask(began)
            self._prepare()
            with self._engine.connect() as connection:
                connection.execute(select(RECORDS.c.id).limit(1)).first()
            if self._down:
                self._probe()
                self._is_down(False, began)
        except (
            Exception
        ) as error:  # drivers raise many kinds; all mean that a record would not be kept there
            self._is_down(True, began, error)
            self._has_room(_ROW_BYTES, error)

    def write(self, record: JsonMapping) -> None:
        """Put one record (the columns of ``RECORDS`` but ``id``, ``record`` and ``at``) into the
        store, or into the buffer.

        Raises:
            AuditError: neither took it.
        """
        row = {"record": uuid.uuid4().hex, "at": time.time(), **record}
        if self._spool is None:
            try:
                self._insert([row])
            except Exception as error:  # see check
                self._is_down(True, time.monotonic(), error)
                raise AuditError(
                    f"the audit database cannot be written: {type(error).__name__}"
                ) from error
            self._is_down(False, time.monotonic())
            return
        with self._lock:
            self._write_or_keep(self._spool, row)

    def _write_or_keep(self, spool: Spool, row: JsonObject) -> None:
        began = time.monotonic()
        try:
            self._ask(began)
            self._write_back(spool)
            refused = self._refused(row)
            self._is_down(False, began)
        except Exception as error:  # see check
            self._is_down(True, began, error)
            self._keep(lambda: metrics.AUDIT_WAITING.set(spool.put(row)), error)
            return
        if refused is not None:
            self._keep(lambda: spool.damaged(row, refused), AuditError(refused))
            metrics.AUDIT_DAMAGED.inc()

    def _ask(self, now: float) -> None:
        """Raise where the database has just made somebody wait in vain, so that not everybody
        waits."""
        if now < self._not_before:
            raise AuditError("the audit database did not answer a moment ago")

    def _refused(self, row: JsonObject) -> str | None:
        """Insert a record; the reason where the database takes others, but not this one.

        Raises:
            Exception: the database takes nothing now.
        """
        for last in (False, True):
            began = time.monotonic()
            try:
                self._insert([row])
                return None
            except Exception as error:
                # Told apart not by their kind, of which each driver has its own, but by trying.
                if time.monotonic() - began > _SLOW_S:
                    raise
                self._probe()
                if self._is_there(row["record"]):
                    # Another process was faster, or this one was killed before it could say so.
                    return None
                if last:
                    return f"{type(error).__name__}: {str(error)[:200]}"
        return None

    def _is_there(self, name: str) -> bool:
        with self._engine.connect() as connection:
            query = select(RECORDS.c.id).where(RECORDS.c.record == name)
            return connection.execute(query).first() is not None

    def _probe(self) -> None:
        """Write a record and delete it."""
        probe = {**_PROBE, "record": uuid.uuid4().hex, "at": time.time()}
        self._insert([probe])
        with self._engine.begin() as connection:
            connection.execute(RECORDS.delete().where(RECORDS.c.record == probe["record"]))

    def _is_down(self, down: bool, began: float, error: Exception | None = None) -> None:
        """Take note of how the last write went, begun at ``began``; the log is told of changes
        alone."""
        if down and not self._down:
            _log.error("the audit database cannot be written: %s", error)
        elif self._down and not down:
            _log.warning("the audit database can be written again")
        self._down = down
        metrics.AUDIT_DOWN.set(down)
        now = time.monotonic()
        if not down:
            self._not_before = 0.0
        elif now - began > _SLOW_S:
            self._not_before = now + (now - began)

    def _prepare(self) -> None:
        """Make the table where there is none, or one of an earlier version; another process may be
        doing so at this moment."""
        with self._making:
            if self._ready:
                return
            for last in (False,) * _FIRST_WRITERS + (True,):
                try:
                    self._make()
                    break
                except Exception as error:
                    if last or not any(sign in str(error) for sign in _RACE):
                        raise
                    time.sleep(random.uniform(0.01, 0.06))  # so that they do not meet again
            self._ready = True

    def _make(self) -> None:
        """Make the table, or the columns that an earlier version's lacks."""
        _META.create_all(self._engine)
        missing = self.columns_lacking()
        if not missing:
            return
        with self._engine.begin() as connection:
            for name in missing:
                new = CreateColumn(RECORDS.c[name]).compile(dialect=self._engine.dialect)
                connection.execute(text(f"ALTER TABLE {RECORDS.name} ADD COLUMN {new}"))
        names = ", ".join(missing)
        _log.warning("the audit table of an earlier version has been given %s", names)

    def _insert(self, rows: list[JsonObject]) -> None:
        unknown = {name for row in rows for name in row} - _FIELDS
        if unknown:
            raise ValueError(f"a record has no field {', '.join(map(repr, sorted(unknown)))}")
        self._prepare()
        with self._engine.begin() as connection:
            connection.execute(insert(RECORDS), rows)

    def _write_back(self, spool: Spool) -> None:
        """Move what waits in the buffer into the database, which is there; another process may be
        doing the same."""
        while not spool.empty():
            part = spool.oldest(_AT_ONCE)
            if self._all_inserted([row for _, row in part]):
                spool.done([number for number, _ in part])
                continue
            for number, row in part:
                refused = self._refused(row)
                if refused is None:
                    spool.done([number])
                else:
                    spool.damaged(row, refused, number)
                    metrics.AUDIT_DAMAGED.inc()
        # another process may have emptied what this one put in
        metrics.AUDIT_WAITING.set(0)

    def _all_inserted(self, rows: list[JsonObject]) -> bool:
        """Insert many records at once; False where that cannot be done, and none of them was."""
        if any(set(row) != set(rows[0]) for row in rows):
            return False  # the statement is made from the first
        began = time.monotonic()
        try:
            if rows:
                self._insert(rows)
        except Exception:  # one by one it shows which of them it is, or that the database is down
            if time.monotonic() - began > _SLOW_S:
                raise
            return False
        return True

    def _keep(self, put: Callable[[], None], error: Exception) -> None:
        """Put a record into the buffer.

        Raises:
            AuditError: the buffer is full, or cannot be written.
        """
        try:
            put()
        except FullError as second:
            raise AuditError(
                f"the audit database cannot be written, and its buffer {second}"
            ) from error
        except (OSError, ValueError, RecursionError, sqlite3.Error, SafeSwitchError) as second:
            raise AuditError(
                f"neither the audit database nor its buffer can be written: {second}"
            ) from second

    def _has_room(self, size: int, error: Exception) -> None:
        """Raise :class:`AuditError` where there is no buffer, or it cannot take ``size`` bytes
        more."""
        spool = self._spool
        if spool is None:
            raise AuditError(
                f"the audit database cannot be written: {type(error).__name__}"
            ) from error
        self._keep(lambda: spool.check_room(size), error)

    def columns_lacking(self) -> list[str] | None:
        """Columns that the table does not have yet, None where there is no table; writes nothing.

        Raises:
            Exception: what the driver says of a database that does not answer.
        """
        found = inspect(self._engine)
        if not found.has_table(RECORDS.name):
            return None
        have = {column["name"] for column in found.get_columns(RECORDS.name)}
        return [column.name for column in RECORDS.columns if column.name not in have]

    def export(self, *, since: float = 0.0) -> Iterator[JsonObject]:
        """Records from ``since`` (Unix seconds) on, oldest first."""
        self._prepare()
        with self._engine.begin() as connection:
            _at_leisure(connection)
            for row in connection.execute(
                select(RECORDS).where(RECORDS.c.at >= since).order_by(RECORDS.c.id)
            ):
                yield dict(row._mapping)

    def latest(self, most: int, *, since: float = 0.0, texts: bool = True) -> list[JsonObject]:
        """The newest ``most`` records from ``since`` (Unix seconds) on, newest first; ``texts``:
        with the requests' texts, which may be long."""
        self._prepare()
        columns = [column for column in RECORDS.c if texts or column is not RECORDS.c.text]
        query = select(*columns).where(RECORDS.c.at >= since).order_by(RECORDS.c.id.desc())
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query.limit(most))]

    def has_flagged(self, bundle_id: str, text_sha256: str) -> bool:
        """Whether a record says that the switch fired on the text."""
        self._prepare()
        same_text = RECORDS.c.text_sha256 == text_sha256
        own = same_text & (RECORDS.c.bundle_id == bundle_id) & RECORDS.c.fired
        with self._engine.connect() as connection:
            return connection.execute(select(RECORDS.c.id).where(own).limit(1)).first() is not None

    def count(self, *, before: float) -> int:
        """How many records are older than ``before`` (Unix seconds)."""
        self._prepare()
        with self._engine.connect() as connection:
            _at_leisure(connection)
            query = select(func.count()).select_from(RECORDS).where(RECORDS.c.at < before)
            return int(connection.execute(query).scalar_one())

    def forget(self, *, before: float) -> int:
        """Delete records older than ``before`` (Unix seconds); returns how many."""
        self._prepare()
        with self._engine.begin() as connection:
            _at_leisure(connection)
            return int(connection.execute(RECORDS.delete().where(RECORDS.c.at < before)).rowcount)

    def close(self) -> None:
        self._engine.dispose()


def _at_leisure(connection: Connection) -> None:
    """Take a statement's time limit away until the transaction ends: an operator may read or delete
    many records."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))


_LIMITS: Mapping[str, JsonMapping] = {
    "sqlite": {"timeout": _STATEMENT_S},
    # the last two end a connection to a server that is silent; the first alone is known to every
    # driver of PostgreSQL
    "psycopg": {
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": 1000 * _STATEMENT_S,
        "keepalives_idle": _CONNECT_S,
    },
    "psycopg2": {
        "connect_timeout": _CONNECT_S,
        "tcp_user_timeout": 1000 * _STATEMENT_S,
        "keepalives_idle": _CONNECT_S,
    },
    "pymysql": {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _STATEMENT_S,
        "write_timeout": _STATEMENT_S,
    },
}
"""Time limits by driver, as its ``connect`` takes them; what stands in the URL goes before."""


def _engine(url: str) -> Engine:
    """An engine that waits for nothing longer than the limits above.

    Raises:
        SettingError: not a URL of SQLAlchemy, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
        driver = parsed.get_driver_name()
        limits = _LIMITS.get("sqlite" if parsed.get_backend_name() == "sqlite" else driver, {})
        own = {name: value for name, value in limits.items() if name not in parsed.query}
        file = parsed.get_backend_name() != "sqlite" or parsed.database not in (
            None,
            "",
            ":memory:",
        )
        waiting = {"pool_timeout": _STATEMENT_S} if file else {}
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=own, **waiting)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingError(
            f"audit: {url!r} is no URL of a database that can be used here: {error}"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "do_connect", _make_private)
        event.listen(engine, "connect", _write_ahead)
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _limit_statements)
    return engine


def _make_private(
    dialect: Dialect, record: ConnectionPoolEntry, args: list[object], options: JsonObject
) -> None:
    """A database file that is not there yet is made for its owner alone."""
    path = Path(str(args[0])) if args else Path(":memory:")
    if not options.get("uri") and path.name not in (":memory:", ""):
        with suppress(OSError):  # SQLite says what is wrong
            make_private(path)


def _warn_of_readers(engine: Engine) -> None:
    """Say so where others than its owner may read a database file that is there already."""
    name = engine.url.database if engine.dialect.name == "sqlite" else None
    with suppress(OSError):
        if name and Path(name).stat().st_mode & 0o007:
            _log.warning(
                "the audit database %s may be read by everybody; chmod 600 ends that", name
            )


def _write_ahead(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA busy_timeout={1000 * _STATEMENT_S}")


def _limit_statements(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET statement_timeout = {1000 * _STATEMENT_S}")
    cursor.close()
    connection.commit()
