"""Why a request was refused, and a safe way on, in a sentence or two for the person who asked.

English names the kind of harm. In another language of the starter set the sentences are those that
its refusals end with, by the family of the harm; a table of one's own for a language goes into
``reasons.json``, as for English. Knows nothing of switches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from safeswitch.core.harms import OTHER
from safeswitch.data import starter
from safeswitch.data.language import language_of

EXPLAIN: tuple[str, ...] = ("off", "sentence")
"""Whether a refusal is followed by its reason."""
GAP = "\n\n"
"""Between a refusal and its reason."""
_FAMILIES: Mapping[str, str] = {
    "violence": "life",
    "weapons": "life",
    "children": "life",
    "sexual": "person",
    "drugs": "crime",
    "fraud": "crime",
    "crime": "crime",
    "cyber": "digital",
    "ai_misuse": "digital",
    "harassment": "person",
    "hate": "person",
    "privacy": "person",
    "misinformation": "truth",
    "copyright": "truth",
    "self_harm": "care",
    "advice": "care",
}


def reason(category: str, text: str = "") -> str:
    """The reason and a safe way on.

    Args:
        category: Kind of harm, a name of :data:`safeswitch.core.harms.HARMS`.
        text: The request, whose language decides that of the reason; English where it is not one of
            those that there are sentences for.
    """
    language = language_of(text)
    named = _table().get(language)
    if named is not None:
        return named.get(category, named[OTHER])
    own = starter.sentences(language)
    said = [own[_FAMILIES[category]]] if category in _FAMILIES else []
    return starter.joined([*said, own["offer"]], language)


@cache
def _table() -> Mapping[str, Mapping[str, str]]:
    """Sentences by language, then by kind."""
    path = Path(__file__).with_suffix(".json")
    found: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return found
