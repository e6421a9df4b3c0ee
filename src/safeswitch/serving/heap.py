"""Memory that does not creep. glibc gives threads heaps of their own, which fill with holes under
hours of uneven load."""

from __future__ import annotations

import ctypes
import os
import sys

_SETTING = "MALLOC_ARENA_MAX"
_M_ARENA_MAX = -8
"""``mallopt``'s name for the number of heaps (malloc.h)."""


def one_heap() -> None:
    """Keep this process and its children to one heap, where the C library is glibc and the operator
    has set no number."""
    if _SETTING in os.environ or sys.platform != "linux":
        return
    os.environ[_SETTING] = "1"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
