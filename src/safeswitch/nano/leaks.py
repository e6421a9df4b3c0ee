"""Asserts that no test request is in the corpus of the language model or in fit data, bare or
inside anything."""

from __future__ import annotations

from itertools import islice

from safeswitch.core.errors import DataError
from safeswitch.nano.corpus import conversations
from safeswitch.nano.suites import SUITES, load_fit, load_suite


def assert_no_leaks(conversations_read: int = 20_000, n: int = 300, seed: int = 0) -> int:
    """Look for the bare requests of all suites inside corpus and fit data; returns how many
    requests were looked for.

    Harmful requests and their look-alikes are looked for inside whole user texts, case aside;
    ordinary tasks among bare texts, since one may be part of another (``hello`` is in ``Hello,
    helper``).

    Args:
        conversations_read: Conversations of the mixture that are read; as many are read of the
            opening drills.

    Raises:
        DataError: a test request that occurs elsewhere, or a fit request that occurs in the corpus.
    """
    told = [
        turns
        for warm in (0, conversations_read)
        for turns in islice(conversations(seed, warm), conversations_read)
    ]
    corpus = "\n".join(turn.content for turns in told for turn in turns[:-1]).lower()
    fit = load_fit(seed)
    fitted = [e for part in (fit.train, fit.validation, fit.calibration) for e in part]
    fit_text = "\n".join(m.content for e in fitted for m in e.messages).lower()
    tested = [e for name in SUITES for e in load_suite(name, n, seed)]
    for what, examples, text in (
        ("test request in the corpus", tested, corpus),
        ("test request in fit data", tested, fit_text),
        ("fit request in the corpus", fitted, corpus),
    ):
        whole = set(text.split("\n"))
        asked = {(e.meta["request"].lower(), bool(e.answers)) for e in examples}
        common = sorted(r for r, ordinary in asked if (r in whole if ordinary else r in text))
        if common:
            raise DataError(f"{len(common)} leaks ({what}), for example {common[0]!r}")
    return len({e.meta["request"] for e in tested})
