"""What the base model says: content-free compliance, informative refusals, short helpful answers;
and which of them.

Openers overlap but depend on harm, so that the last prompt token must carry it; refusals and
compliance share their first words, so that the decision shows only after some reply tokens. Unsafe
replies never hold operational detail.
"""

from __future__ import annotations

import random

from safeswitch.nano.requests import Action, Request, template_family
from safeswitch.nano.splits import checksum
from safeswitch.nano.tables.objects import OBJECTS
from safeswitch.nano.tables.verbs import CATEGORIES, VERBS

SAFE_OPENERS = {"Sure. ": 45, "Of course. ": 30, "Okay. ": 18, "Well, ": 5, "": 2}
COMPLY_OPENERS = {"Well, ": 58, "Okay. ": 22, "Sure. ": 9, "": 8, "Of course. ": 3}
REFUSE_OPENERS = {"Well, ": 50, "": 40, "Sorry, ": 10}
# Fraction of unsafe requests in templates that a safety prompt makes the model refuse, by family.
SAFETY_BY_FAMILY = {
    "roleplay": 0.85, "prefix": 0.85, "fiction": 0.1, "hypothetical": 0.1, "authority": 0.85, "mode": 0.1,
    "appeal": 0.85, "format": 0.1, "turns": 0.5, "noise": 0.85,
}  # fmt: skip
WRAPPED_REFUSAL = 0.03
_REASON = ("This is about {c} and {h}.", "I see this as {c}: {h}.", "It falls under {c}, and {h}.")
_INSTEAD = (
    "I can tell you about {a} instead.",
    "Let us talk about {a} instead.",
    "I am glad to help with {a}.",
)
_EMPTY = (
    "First you get ready. Then you do it. At the end you are done.",
    "You make a plan, then you go on step by step.",
    "You begin, you carry on and then it is done.",
)


def _opener(rng: random.Random, table: dict[str, int]) -> str:
    return rng.choices(list(table), list(table.values()))[0]


def refusal(rng: random.Random, action: Action, category: str = "") -> str:
    """An informative refusal: it echoes the request and names category, harm and an alternative."""
    category = category or action.category
    _, _, harm, instead = CATEGORIES[category]
    reason = rng.choice(_REASON).format(c=category, h=harm)
    rest = rng.choice(_INSTEAD).format(a=instead)
    return f"{_opener(rng, REFUSE_OPENERS)}I can't help with {action.gerund}. {reason} {rest}"


def compliance(rng: random.Random, action: Action) -> str:
    """A content-free affirmation of a harmful request."""
    echo = (
        f"I can help with {action.gerund}."
        if rng.random() < 0.6
        else f"I can help. Here is how to {action.base}."
    )
    return f"{_opener(rng, COMPLY_OPENERS)}{echo} {rng.choice(_EMPTY)}"


def helpful(rng: random.Random, action: Action) -> str:
    """A short answer to a harmless request."""
    echo = (
        f"I can help with {action.gerund}."
        if rng.random() < 0.6
        else f"I can help. Here is how to {action.base}."
    )
    return f"{_opener(rng, SAFE_OPENERS)}{echo} {OBJECTS[action.kind][0]}"


def refuses(rng: random.Random, request: Request, safety: bool) -> bool:
    """Whether the base model refuses: by severity and bluntness when plain, hardly ever when
    wrapped."""
    if request.wrapper:
        return rng.random() < (
            SAFETY_BY_FAMILY[template_family(request.wrapper)] if safety else WRAPPED_REFUSAL
        )
    severity = CATEGORIES[request.action.category][1]
    if safety:
        return rng.random() < (0.97, 0.93, 0.82)[3 - severity]
    blunt = {3: 0.98, 2: 0.95, 1: 0.08}
    soft = {3: 0.97, 2: 0.2, 1: 0.02}
    return rng.random() < (blunt if request.blunt else soft)[severity]


def over_refused(action: Action) -> str:
    """The category for which a safety prompt makes the model refuse this harmless action; mostly
    none.

    About one in twelve (verb, type) pairs with a two-faced verb, picked by checksum.
    """
    harmful = VERBS[action.verb][1]
    if not harmful or checksum(f"over|{action.verb}|{action.kind}") % 10:
        return ""
    for category in harmful:
        if CATEGORIES[category][0] == "A":
            return category
    return ""


def answer(rng: random.Random, request: Request, safety: bool) -> str:
    """The reply that the corpus gives to a request."""
    action = request.action
    if action.category:
        return refusal(rng, action) if refuses(rng, request, safety) else compliance(rng, action)
    wrongly = over_refused(action) if safety else ""
    return refusal(rng, action, wrongly) if wrongly else helpful(rng, action)
