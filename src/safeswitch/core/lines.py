"""Append-only JSONL with which an interrupted run is resumed: a stamp beside it says whose it is, a
torn last line is cut off.

Every row has a unique ``id`` and ``request``, a hash of what it answers. Knows nothing of what rows
hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safeswitch.core.artifact import read_json, write_json
from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonMapping, JsonObject

Rows = dict[str, JsonObject]


def stamp_path(path: Path) -> Path:
    """Where the identity of the run that writes ``path`` stands."""
    return path.with_name(path.name + ".run.json")


def take_up(path: Path, run: JsonMapping, requests: Mapping[str, str]) -> Rows:
    """Rows of ``path`` that are whole, by id, ready to be appended to; the stamp is written where
    the file is new.

    Args:
        path: The JSONL file.
        run: Identity, plain JSON: a file that another one wrote is refused.
        requests: By id, the hash of each request that may be in the file.

    Raises:
        ArtifactError: see :func:`rows_of_run`.
    """
    if not path.exists():
        write_json(stamp_path(path), run)
        return {}
    rows = rows_of_run(path, run, requests)
    cut_torn_line(path)
    return rows


def rows_of_run(path: Path, run: JsonMapping, requests: Mapping[str, str]) -> Rows:
    """Rows of ``path`` that are whole, by id; the file may be written meanwhile, and is left as it
    is.

    Args:
        path: A JSONL file that exists.
        run: Identity, plain JSON: a file that another one wrote is refused.
        requests: By id, the hash of each request that may be in the file.

    Raises:
        ArtifactError: a file of another run, one that holds something else, or a row of another
            request.
    """
    stamp = stamp_path(path)
    if not stamp.exists():
        raise ArtifactError(
            f"{path} exists and was not written by this command; name another file or remove it"
        )
    if (before := read_json(stamp)) != run:
        differs = ", ".join(key for key in {**run, **before} if before.get(key) != run.get(key))
        raise ArtifactError(
            f"{path} belongs to a run with another {differs}; name another file or remove it"
        )
    rows = read_rows(path)
    for name, row in rows.items():
        if requests.get(name) != row["request"]:
            raise ArtifactError(
                f"{path} answers a request {name!r} that the input does not hold, or holds with "
                "other words; name another file or remove it"
            )
    return rows


def cut_torn_line(path: Path) -> None:
    """Take a half-written last line away, so that the next row does not go on in it."""
    text = path.read_bytes()
    if not text.endswith(b"\n") and text:
        with path.open("r+b") as stream:
            stream.truncate(text.rfind(b"\n") + 1)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of ``path`` but a half-written last one.

    Raises:
        OSError: it cannot be read.
    """
    text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1].splitlines()


def read_rows(path: Path) -> Rows:
    """The whole lines of ``path`` by id; a half-written last one does not count.

    Raises:
        ArtifactError: no such file, or a line that is no row.
    """
    rows: Rows = {}
    try:
        for row in map(json.loads, whole_lines(path)):
            if not isinstance(row["request"], str):
                raise TypeError("'request' must be text")
            rows[row["id"]] = row
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} holds a line that is no reply: {error}") from error
    return rows


def append(path: Path, rows: Sequence[JsonMapping]) -> None:
    """Add rows and wait until they are on disk.

    Raises:
        ArtifactError: the disk is full, or the folder may not be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    try:
        with path.open("ab") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error}; what was answered before is kept, run again to go on"
        ) from error
