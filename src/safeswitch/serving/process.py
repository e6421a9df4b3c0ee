"""What a server's process is set up with: one heap, and a log with one line a decision."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

_SETTING = "MALLOC_ARENA_MAX"
_M_ARENA_MAX = -8
"""``mallopt``'s name for the number of heaps (malloc.h)."""
_FORMAT = "%(levelname)s %(asctime)s %(name)s: %(message)s"


def one_heap() -> None:
    """Keep this process and its children to one heap, where the C library is glibc and the operator
    has set no number.

    glibc gives threads heaps of their own, which fill with holes under hours of uneven load, so that
    memory creeps.
    """
    if _SETTING in os.environ or sys.platform != "linux":
        return
    os.environ[_SETTING] = "1"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def log_to_stderr() -> None:
    """Print what SafeSwitch logs from level INFO on, beside the lines of the server that it stands
    in; nothing changes where the program has set its log up already."""
    log = logging.getLogger("safeswitch")
    if log.handlers or log.level != logging.NOTSET:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
