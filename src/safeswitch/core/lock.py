"""One writer at a time for a file or a folder; readers are never asked.

The lock is the operating system's: it ends with the process that holds it, however that ends, so
that a file ``*.lock`` that was left behind is no obstacle. It holds among all processes of one
machine, and on network file systems whose server knows locks (NFS 4 does; an NFS 3 mount with
``nolock`` does not, and two machines must not write to one place there).
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonObject

_POLL_S = 0.02
_SHOWN = 200


@contextmanager
def file_writer(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only writer of ``path``, whose folder is made when absent.

    Args:
        path: A file that exists or not; ``<path>.lock`` stands beside it meanwhile.
        wait_s: Seconds to wait for another writer to end.

    Raises:
        ArtifactError: another writer has it, who is named; or there can be no lock in that folder.
    """
    with _held(path, path.with_name(f"{path.name}.lock"), wait_s):
        yield


@contextmanager
def folder_writer(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only writer into ``folder``, which is made when absent; ``.lock`` stands in it
    meanwhile.

    Raises:
        ArtifactError: see :func:`file_writer`.
    """
    made = not folder.exists()
    try:
        with _held(folder, folder / ".lock", wait_s):
            yield
    finally:
        if made:  # what has failed before it wrote anything leaves no folder behind
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def _held(place: Path, lock_path: Path, wait_s: float) -> Iterator[None]:
    """Hold ``lock_path``; beside it stands who does, in words, for those who find it held."""
    holder = lock_path.with_name(f"{lock_path.name}.json")
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path, poll_interval=_POLL_S)
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise ArtifactError(
            f"{place} is being written by {_holder(holder)}; wait until that is done, stop it, or "
            "name another place"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise ArtifactError(
            f"cannot lock {place}: {error}; name a place that can be written and locked"
        ) from error
    try:
        with suppress(OSError):  # a lock without a name is a lock
            holder.write_text(json.dumps(_self()), encoding="utf-8")
        yield
    finally:
        # both go while the lock is held: who opened the file before finds it gone and opens the
        # next one
        holder.unlink(missing_ok=True)
        lock_path.unlink(missing_ok=True)
        lock.release()


def _self() -> JsonObject:
    """This process, as others are told of it."""
    command = " ".join(sys.orig_argv)[:_SHOWN]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "since": now, "command": command}


def _holder(file: Path) -> str:
    """Who holds the lock, in words; it may have ended just now, or not yet have said."""
    try:
        who = json.loads(file.read_text(encoding="utf-8"))
        text = f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
