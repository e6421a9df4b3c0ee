"""An engine that reads requests and answers none: a file of requests becomes a file of decisions.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Prompt, Reply
from safeswitch.switch.engine import Engine, GenerationOptions
from safeswitch.switch.switch import Switch

Screen = Callable[[Sequence[Prompt]], list[Decision]]
"""What stage 1 decides on each request, in order."""


class Screening(Engine):
    """See the module text.

    Args:
        screen: Reads the requests.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """Empty replies with the decisions; the switch is the one that ``screen`` has."""
        decisions = self._screen(prompts)
        return [Reply("", (), "stop", decision, 0) for decision in decisions]


def decision_fields(reply: Reply) -> JsonObject:
    """What a row of a file of decisions holds."""
    return {"flagged": reply.decision.fired, "decision": reply.decision.to_dict()}
