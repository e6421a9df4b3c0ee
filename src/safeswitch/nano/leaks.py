"""Asserts that no test prompt is in the corpus of the language model or in fit data."""

from __future__ import annotations

from itertools import islice

from safeswitch.core.errors import DataError
from safeswitch.nano.corpus import conversations
from safeswitch.nano.suites import SUITES, load_fit, load_suite


def assert_no_leaks(conversations_read: int = 20_000, n: int = 300, seed: int = 0) -> int:
    """Compare final user texts of all suites with the corpus and fit data; returns how many test prompts were checked.

    Raises:
        DataError: a test prompt that occurs elsewhere, or a fit prompt that occurs in the corpus.
    """
    corpus = {turns[-2].content for turns in islice(conversations(seed), conversations_read)}
    fit = load_fit(seed)
    fitted = {e.prompt for part in (fit.train, fit.validation, fit.calibration) for e in part}
    tested = {e.prompt for name in SUITES for e in load_suite(name, n, seed)}
    for what, left, right in (
        ("test prompt in the corpus", tested, corpus),
        ("test prompt in fit data", tested, fitted),
        ("fit prompt in the corpus", fitted, corpus),
    ):
        common = left & right
        if common:
            raise DataError(f"{len(common)} leaks ({what}), for example {sorted(common)[0]!r}")
    return len(tested)
