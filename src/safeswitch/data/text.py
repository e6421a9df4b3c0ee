"""One normal form of a prompt's text, so that splits and leakage checks agree on what "the same"
means.

Knows nothing of files, labels or models.
"""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """Fold case, width and accents' composition, drop everything but letters, marks and digits,
    join with one space.

    A text without any letter or digit keeps its symbols, so that two different ones stay different.

    Examples:
        >>> normalise("  Hello,  WORLD -- No. 5!")
        'hello world no 5'
        >>> normalise("?!")
        '?!'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in folded
    )
    return " ".join(kept.split()) or " ".join(folded.split())
