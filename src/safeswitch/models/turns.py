"""From a prompt's text, as the audit keeps it, back to the turns of the conversation.

The text has lost the template's special tokens and kept its words. What stands around the turns
is found by sending marked conversations through the same template. Knows templates. Knows
nothing of where texts come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeswitch.core.errors import ModelError
from safeswitch.core.types import Message, Role
from safeswitch.models.chat import ChatEncoder
from safeswitch.models.prompt_text import PromptText

_SYSTEM, _ASKED, _REPLIED, _AGAIN = "qzsystem", "qzasked", "qzreplied", "qzagain"


class Turns:
    """Takes prompts of one chat template apart.

    Args:
        encoder: The template that the prompts went through.

    Raises:
        ModelError: no chat template, or one that shows the turns' text elsewhere than in order.
    """

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        self._text = PromptText(encoder.tokenizer)
        plain = self._around((Message("user", _ASKED),))
        system = self._around((Message("system", _SYSTEM), Message("user", _ASKED)))
        longer = (Message("user", _ASKED), Message("assistant", _REPLIED), Message("user", _AGAIN))
        _, self._to_reply, self._to_user, _ = self._around(longer)
        self._opening, self._ending = plain
        self._system_opening, self._system_ending, _ = system

    def _around(self, messages: Sequence[Message]) -> list[str]:
        """The template's words in front of, between and behind the turns."""
        rest, pieces = self._render(messages), []
        for message in messages:
            piece, found, rest = rest.partition(message.content)
            if not found:
                raise ModelError(
                    f"the chat template of {self._encoder.model_id} does not show its turns in "
                    "order"
                )
            pieces.append(piece)
        return [*pieces, rest]

    def _render(self, messages: Sequence[Message]) -> str:
        return self._text(self._encoder.encode([messages], limit=None)[0].ids)

    def __call__(self, text: str) -> tuple[Message, ...] | None:
        """The turns, the last one the user's; None where they cannot be told for certain.

        That is so where the template parts turns by special tokens alone, which the text has lost,
        and the text has more than one line; and where the turns found do not give the text again.
        """
        body, system = self._inner(text)
        if body is None or self._unsure(body):
            return None
        turns = [*system, *self._split(body)]
        if turns[-1].role != "user" or any(not turn.content.strip() for turn in turns):
            return None
        return tuple(turns) if self._render(turns) == text else None

    def _inner(self, text: str) -> tuple[str | None, list[Message]]:
        """What stands between the template's opening and ending; a system turn if one was given."""
        if not text.endswith(self._ending):
            return None, []
        body = text.removesuffix(self._ending)
        if body.startswith(self._opening):
            return body.removeprefix(self._opening), []
        if not body.startswith(self._system_opening):
            return None, []
        system, found, rest = body.removeprefix(self._system_opening).partition(self._system_ending)
        return (rest, [Message("system", system)]) if found else (None, [])

    def _unsure(self, body: str) -> bool:
        """Whether white space alone parts turns, and there is some of it in the text."""
        joints = (self._to_reply, self._to_user, self._system_ending)
        return any(not joint.strip() and (not joint or joint in body) for joint in joints)

    def _split(self, body: str) -> list[Message]:
        turns: list[Message] = []
        role: Role = "user"
        found = "more"
        while found:
            content, found, body = body.partition(
                self._to_reply if role == "user" else self._to_user
            )
            turns.append(Message(role, content))
            role = "assistant" if role == "user" else "user"
        return turns
