"""What data sets call kinds of harm, in our names (:mod:`safeswitch.core.harms`).

A category that means several of our kinds, or that no table holds, is of none: nothing is learned
from it. Knows nothing of readers.
"""

from __future__ import annotations

from collections.abc import Mapping

from safeswitch.core.harms import HARMS
from safeswitch.core.types import Example
from safeswitch.data.splits import is_starter

_STARTER: Mapping[str, tuple[str, ...]] = {
    "violence": ("violence", "terrorism", "extreme_gore", "animal_cruelty", "trafficking"),
    "weapons": ("weapons", "explosives", "mass_harm", "poisons"),
    "drugs": ("drugs",),
    "cyber": ("cyber_intrusion", "malware", "phishing"),
    "fraud": (
        "fraud",
        "identity_theft",
        "money_laundering",
        "counterfeit",
        "corruption",
        "deception",
    ),
    "crime": ("theft", "burglary", "vandalism", "infrastructure", "evading_law", "wildlife"),
    "harassment": ("harassment", "stalking", "blackmail"),
    "hate": ("hate", "discrimination"),
    "self_harm": ("self_harm", "dangerous_acts"),
    "sexual": ("sexual_violence", "intimate_images"),
    "children": ("child_abuse",),
    "privacy": ("privacy",),
    "misinformation": ("disinformation", "election"),
    "copyright": ("cheating", "piracy"),
    "advice": ("risky_advice",),
    "ai_misuse": ("ai_misuse",),
}
"""Categories of the starter set, by kind."""
_PUBLIC: Mapping[str, tuple[str, ...]] = {
    # HarmBench; its "illegal" and "harmful" mean several kinds
    "copyright": ("copyright",),
    "misinformation": ("misinformation_disinformation", "conspiracy theories & misinformation"),
    "weapons": ("chemical_biological", "weapons"),
    "cyber": ("cybercrime_intrusion", "malware"),
    "harassment": ("harassment_bullying", "bullying & harassment"),
    # MultiJail and the red-teaming tags that it takes over
    "violence": (
        "violence & incitement",
        "terrorism & organized crime",
        "animal abuse",
        "physical harm",
    ),
    "hate": (
        "hate speech & offensive language",
        "discrimination & injustice",
        "hate speech",
    ),
    "drugs": ("substance abuse & banned substances",),
    "crime": ("theft", "property crime & vandalism"),
    "fraud": ("fraud & deception", "fraud", "economic harm"),
    "self_harm": ("self-harm",),
    "sexual": ("adult content", "pornography", "sexual exploitation & human trafficking"),
    "children": ("child abuse",),
    # TrustLLM writes "violence" for a violation of privacy
    "privacy": ("soliciting personally identifiable information", "privacy violence"),
    "advice": ("financial advice", "legal opinion", "health consultation"),
}
"""Categories of public sets in small letters, by kind."""
_NANO: Mapping[str, tuple[str, ...]] = {
    "violence": ("cruelty", "kidnapping"),
    "cyber": ("hacking",),
    "fraud": ("forgery", "tax evasion", "bribery"),
    "crime": ("poaching", "arson", "sabotage", "tampering", "pollution"),
    "harassment": ("extortion",),
}
"""Categories of the embedded model's own requests that stand in no table above, by kind."""


def _by_name(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for harm, names in table.items():
        found |= dict.fromkeys(names, harm)
    return found


_OF_STARTER = _by_name(_STARTER)
_OF_OTHERS = _by_name(_PUBLIC) | _by_name(_NANO)


def harm_of(example: Example) -> str:
    """The kind of harm that an unsafe request asks for; empty where it is not known.

    ``category`` may be one of our names, or a name of the starter set or of a public set. A row of
    the starter set is read by the starter set's table alone, which uses some of the same words.
    """
    if not example.unsafe:
        return ""
    if is_starter(example.source):
        return _OF_STARTER.get(example.category, "")
    return harm_named(example.category)


def harm_named(category: str) -> str:
    """Our name of a category; empty where no table holds it."""
    name = category.strip().lower()
    if name in HARMS:
        return name
    return _OF_OTHERS.get(name, _OF_STARTER.get(name, ""))
