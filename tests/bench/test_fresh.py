"""What a fresh process must find without importing anything by hand."""

from __future__ import annotations

import subprocess
import sys


def test_a_run_knows_the_judges_that_need_no_model() -> None:
    code = (
        "import safeswitch.bench.bench\n"
        "from safeswitch.bench.judges.base import JUDGES\n"
        "print(*sorted(JUDGES))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"rules", "number", "letter", "alias"} <= set(done.stdout.split())
