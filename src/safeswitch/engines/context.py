"""What a server tells an engine about the request in hand, and what the engine tells it back,
through a context variable."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from safeswitch.core.types import Decision
from safeswitch.switch.rules import Rules

POLICIES: tuple[str, ...] = ("enforce", "observe", "off")
SCORE = "score"
"""In place of a policy: the request is read and not answered."""
UNSCREENED = "this switch has no stage that reads a request by itself, without a reply"


@dataclass(frozen=True)
class ChoiceDecision:
    """What was decided on one choice of one request, under which switch and policy, and on what
    text."""

    choice: int
    decision: Decision
    bundle: str
    bundle_id: str
    policy: str
    text: str


@dataclass
class Refusal:
    """A refusal that goes to the client beside the engine's reply, where nothing that parses
    replies reads it.

    Args:
        text: What has been written of it.
        tokens: Tokens of that text.
        ended: Whether it is whole.
    """

    text: str = ""
    tokens: int = 0
    ended: bool = False


@dataclass
class Context:
    """What the server knows of the request in hand; handed down to the engine's front end.

    Args:
        policy: Policy that this client may have, None for the engine's own.
        bundle: Bundle that this client is served with, None for the default.
        chat: Whether the prompt has come through a chat template, and so must end where a reply
            begins.
        system: Texts of the request's system turns, which must arrive in the prompt.
        max_tokens: Longest reply that the operator serves, None for any.
        score_only: Whether the request is read, by stage 1 alone, and not answered.
        on_decision: Awaited with each decision before the last output of its choice is handed out.
        decisions: Decisions so far by choice.
        choices: Numbers of the choices of one request, handed out in order.
        unrecorded: A decision could not be recorded; the reply must not leave.
        tell_refusals: Whether streams are to say in ``refusing`` where refusals begin.
        refusing: Choices whose text is a refusal from the output in hand on.
        structured: Whether the client asks for a reply that is parsed: tools, functions, a response
            format, a grammar.
        formatted: Whether it asks for a format of the text itself.
        separate_refusals: Whether refusals go into ``refusals`` instead of the engine's outputs.
        refusals: Those refusals so far, by choice.
        rules: What a policy has done with this client's requests under ``bundle``; None without one.
        allows: Whether the policy lets a text through, whatever is seen in it.
        policy_id: Of the policy file in force; empty without one.
    """

    policy: str | None = None
    bundle: str | None = None
    chat: bool = False
    system: tuple[str, ...] = ()
    max_tokens: int | None = None
    score_only: bool = False
    on_decision: Callable[[ChoiceDecision], Awaitable[None]] | None = None
    decisions: dict[int, ChoiceDecision] = field(default_factory=dict)
    choices: Any = field(default_factory=itertools.count)
    unrecorded: bool = False
    tell_refusals: bool = False
    refusing: set[int] = field(default_factory=set)
    structured: bool = False
    formatted: bool = False
    separate_refusals: bool = False
    refusals: dict[int, Refusal] = field(default_factory=dict)
    rules: Rules | None = None
    allows: Callable[[str], bool] | None = None
    policy_id: str = ""

    def policy_for(self, policy: str, text: str) -> str:
        """The policy for a request with this text: what is let through is only observed."""
        if policy == "enforce" and self.allows is not None and self.allows(text):
            return "observe"
        return policy


CONTEXT: ContextVar[Context | None] = ContextVar("safeswitch_context", default=None)
