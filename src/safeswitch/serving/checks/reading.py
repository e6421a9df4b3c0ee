"""What is read by itself, and what a client is told of it. Knows nothing of routes or engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from safeswitch.core.harms import HARMS
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Message
from safeswitch.engines.context import ChoiceDecision
from safeswitch.probers.harms import SURE
from safeswitch.serving.replies.form import public

UNSAFE = "unsafe"
"""The category of whatever stage 1 of the switch was fitted to find."""


@dataclass(frozen=True)
class CheckedConversation:
    """A conversation that is read once.

    Args:
        messages: It ends in a user's turn.
        where: Field of the body that it stands in, for errors.
        data: Whether it came with a request as data: the result of a tool, a document.
    """

    messages: tuple[Message, ...]
    where: str
    data: bool = False


@dataclass(frozen=True)
class ClientView:
    """What a client may be told, and what is advised.

    Args:
        id: Of the request.
        scores: Whether the client may see scores.
        tool_results: What is done with a flagged tool result: ``mark``, ``strip`` or ``refuse``.
        kinds: Whether the client may see kinds of harm without scores.
        allows: Whether the policy file lets a text through, whatever is seen in it; None: it names
            no texts.
    """

    id: str
    scores: bool
    tool_results: str
    kinds: bool = False
    allows: Callable[[str], bool] | None = None

    def action(self, reading: CheckedConversation, decided: ChoiceDecision) -> str:
        """What is advised: ``allow``, ``refuse``, or of data what is done with flagged tool
        results.

        A policy file's ``annotate`` and ``log`` leave a flagged request alone. Its ``careful``
        refuses, since the caller's model cannot be told to take care.
        """
        d = decided.decision
        if not d.fired:
            return "allow"
        if reading.data:
            return self.tool_results
        if d.act in ("annotate", "log") or (self.allows is not None and self.allows(decided.text)):
            return "allow"
        return "refuse"

    def describe(self, decided: ChoiceDecision) -> JsonObject:
        """Flag, categories and what stands in every reply's ``safeswitch``."""
        return {
            "flagged": decided.decision.fired,
            "categories": categories_of(decided, self.scores or self.kinds),
            "category_scores": category_scores_of(decided) if self.scores else {},
            "safeswitch": public(decided, self.scores, self.kinds),
        }


class CheckBody(Protocol):
    """The body of a route that reads and does not answer."""

    @property
    def readings(self) -> list[CheckedConversation]:
        """What is read, in order."""

    def reply(self, decisions: list[ChoiceDecision], view: ClientView) -> JsonObject:
        """The reply, from the decision on each reading."""


def categories_of(decided: ChoiceDecision, kinds: bool) -> Mapping[str, bool]:
    """Which categories a decision flags, by their key.

    Args:
        decided: The decision.
        kinds: Whether kinds of harm are told too, where the switch reads them.
    """
    d = decided.decision
    found = {UNSAFE: d.fired}
    for name in HARMS if kinds and d.severity else ():
        found[name] = name == d.category or d.categories.get(name, 0.0) >= SURE
    return found


def category_scores_of(decided: ChoiceDecision) -> Mapping[str, float]:
    """The score of each category in [0, 1], of kinds of harm in what is flagged; empty where the
    reader could not run."""
    d = decided.decision
    own = {UNSAFE: d.scores["stage1"]} if "stage1" in d.scores else {}
    return {**own, **d.categories}
