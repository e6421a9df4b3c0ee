"""Records that wait for the audit database, in a SQLite file beside it that any number of processes
share.

Table ``waiting``: records in their order. Table ``damaged``: what the audit database will never
take, with the reason. A record is in the file whole or not at all, and none that is wrong keeps
others from being written. Knows nothing of the database that they wait for. Readable by its owner
alone.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from safeswitch.core.errors import ArtifactError, SafeSwitchError
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.lock import file_writer

_log = logging.getLogger("safeswitch.server")
_MAKING = threading.Lock()
"""Held while a file is made, so that no other thread has SQLite open it before it is closed."""
_BUSY_S = 10.0
_MAGIC = b"SQLite format 3\0"
_TABLES = """
create table if not exists waiting (
    id integer primary key autoincrement, record text not null unique, row text not null);
create table if not exists damaged (
    id integer primary key autoincrement, at real not null, reason text not null, row blob not null);
"""


class FullError(SafeSwitchError):
    """The spool holds as much as it may."""


class Waiting(NamedTuple):
    """A record that waits.

    Args:
        id: Its place in the spool.
        row: What was put in.
    """

    id: int
    row: JsonObject


class Spool:
    """See the module text.

    Args:
        path: The file, made at the first record. A file of lines, as earlier versions wrote it, is
            taken over, from here or from the same name with the ending ``.jsonl``.
        limit: Most bytes of records in it, damaged ones among them.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._taken = False

    def put(self, row: JsonMapping) -> int:
        """Add a record, which has a name of its own in ``record``; returns how many wait now.

        Raises:
            FullError: there is no room for it.
            OSError, sqlite3.Error: the file cannot be written.
        """
        text = _text(row)
        with self._opened() as spool:
            self._check_room(spool, len(text))
            spool.execute(
                "insert or ignore into waiting (record, row) values (?, ?)",
                (str(row["record"]), text),
            )
            return int(spool.execute("select count(*) from waiting").fetchone()[0])

    def check_room(self, size: int) -> None:
        """Raise :class:`FullError` where ``size`` bytes more would be too many."""
        if self.path.exists():
            with self._opened(write=False) as spool:
                self._check_room(spool, size)
        elif size > self.limit:
            raise FullError(f"{self.path} may hold {self.limit} bytes, fewer than one record has")

    def _check_room(self, spool: sqlite3.Connection, size: int) -> None:
        count = "select coalesce(sum(length(row)), 0) from"
        waiting = spool.execute(f"{count} waiting").fetchone()[0]
        damaged = spool.execute(f"{count} damaged").fetchone()[0]
        if waiting + damaged + size > self.limit:
            raise FullError(
                f"{self.path} holds {waiting} bytes of waiting and {damaged} of damaged records "
                f"already; it may hold {self.limit}"
            )

    def empty(self) -> bool:
        """Whether nothing waits."""
        if not (self.path.exists() or self._old()):
            return True
        with self._opened(write=False) as spool:
            return spool.execute("select 1 from waiting limit 1").fetchone() is None

    def oldest(self, count: int) -> list[Waiting]:
        """The first ``count`` records, oldest first; one that cannot be read is put among the
        damaged."""
        with self._opened() as spool:
            found = spool.execute(
                "select id, row from waiting order by id limit ?", (count,)
            ).fetchall()
            waiting: list[Waiting] = []
            for number, text in found:
                row = _parsed(text)
                if isinstance(row, str):
                    _damage(spool, row, text, number)
                else:
                    waiting.append(Waiting(number, row))
        return waiting

    def done(self, ids: Sequence[int]) -> None:
        """Forget records that are where they were to go."""
        with self._opened() as spool:
            spool.executemany("delete from waiting where id = ?", [(number,) for number in ids])

    def damaged(self, row: JsonMapping, reason: str, number: int | None = None) -> None:
        """Put a record among the damaged; ``number`` is its place where it waited.

        Raises:
            FullError: it did not wait, and there is no room for it.
        """
        text = _text(row)
        with self._opened() as spool:
            if number is None:
                self._check_room(spool, len(text))
            _damage(spool, reason, text, number)

    @contextmanager
    def _opened(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction, which nobody else writes beside if it writes; a file that is damaged is
        put aside for the next one."""
        self._take_over()
        try:
            with closing(self._connect()) as spool, spool:
                spool.execute("begin immediate" if write else "begin")
                yield spool
        except sqlite3.OperationalError:
            raise  # busy, full, not writable
        except sqlite3.DatabaseError as error:
            self._put_aside(error)
            raise

    def _connect(self) -> sqlite3.Connection:
        make_private(self.path)
        spool = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            spool.executescript(_TABLES)
        except BaseException:
            spool.close()
            raise
        return spool

    def _put_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        with file_writer(self.path, wait_s=_BUSY_S):
            if self._sound():
                return  # another process has been here
            self.path.rename(aside)
        _log.error("%s cannot be read and now stands as %s: %s", self.path, aside, error)

    def _sound(self) -> bool:
        try:
            with closing(self._connect()) as spool:
                answer: str = spool.execute("pragma quick_check(1)").fetchone()[0]
                return answer == "ok"
        except sqlite3.OperationalError:
            return True
        except sqlite3.DatabaseError:
            return False

    def _old(self) -> list[Path]:
        """Files of lines that are to be taken over, and one whose taking over was cut off."""
        places = dict.fromkeys((self.path, self.path.with_suffix(".jsonl"), self._taking()))
        return [place for place in places if place.is_file() and _holds_lines(place)]

    def _taking(self) -> Path:
        return self.path.with_name(f"{self.path.name}.taking-over")

    def _take_over(self) -> None:
        """Move what waits in files of lines into the spool, once."""
        if self._taken or not self._old():
            self._taken = True
            return
        try:
            with file_writer(self.path, wait_s=_BUSY_S):
                for old in sorted(self._old(), key=lambda place: place != self._taking()):
                    # renamed first: it may stand where the spool is to stand
                    lines = old.replace(self._taking())
                    self._import(lines)
                    lines.unlink()
        except ArtifactError as error:
            raise OSError(str(error)) from error
        self._taken = True

    def _import(self, lines: Path) -> None:
        with closing(self._connect()) as spool, spool:
            spool.execute("begin immediate")
            for line in filter(None, lines.read_bytes().split(b"\n")):
                row = _parsed(line)
                if isinstance(row, str):
                    _damage(spool, row, line, None)
                    continue
                named = (row["record"], line.decode())
                spool.execute("insert or ignore into waiting (record, row) values (?, ?)", named)


def make_private(path: Path) -> None:
    """Make the file, where there is none, for its owner alone; SQLite gives its companions the same
    rights.

    A file that is there is not opened: closing it again would end every lock that SQLite holds on
    it in this process (POSIX), and the next reader in another process would take the write-ahead
    log for its own and delete it, with what is written to it from then on.
    """
    with _MAKING, suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _damage(spool: sqlite3.Connection, reason: str, text: str | bytes, number: int | None) -> None:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    spool.execute(
        "insert into damaged (at, reason, row) values (?, ?, ?)", (time.time(), reason, raw)
    )
    spool.execute("delete from waiting where id = ?", (number,))
    _log.error("an audit record is damaged and stands in the buffer's table 'damaged': %s", reason)


def _text(row: JsonMapping) -> str:
    """A record as ASCII, whatever it holds."""
    return json.dumps(dict(row), default=repr)


def _parsed(line: str | bytes) -> JsonObject | str:
    """A record, or why the line is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    name = row.get("record") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name.isascii():
        return "not a record with a name"
    return dict(row)


def _holds_lines(path: Path) -> bool:
    """Whether a file is neither empty nor a database."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    return bool(start) and start != _MAGIC
