"""A process that was told so keeps to one heap: the C library itself is asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

COUNT = """
import ctypes, sys, threading
from safeswitch.serving.process import one_heap
if sys.argv[1] == "one":
    one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
barrier = threading.Barrier(8)
def take():
    barrier.wait()
    libc.malloc(1000)
    barrier.wait()
threads = [threading.Thread(target=take) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
out = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fflush(ctypes.c_void_p(out))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="heaps of threads are glibc's")
@pytest.mark.parametrize(
    ("told", "setting", "one"), [("one", None, True), ("none", None, False), ("one", "4", False)]
)
def test_threads_share_one_heap_unless_the_operator_says_otherwise(
    told: str, setting: str | None, one: bool
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    environment |= {"MALLOC_ARENA_MAX": setting} if setting else {}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, told],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    if "<malloc" not in done.stdout:
        pytest.skip("this C library does not tell of its heaps")
    assert (len(re.findall(r"<heap nr=", done.stdout)) == 1) == one
