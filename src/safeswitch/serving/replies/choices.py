"""Replies with choices: chat completions and completions."""

from __future__ import annotations

from typing import Any

from safeswitch.core.json_types import JsonObject
from safeswitch.engines.context import ChoiceDecision, Refusal
from safeswitch.serving.replies.form import FIELD, Form, add_tokens, refused

Chunk = JsonObject


class Choices(Form):
    """Each choice carries its decision; a reply with one choice carries it too, in streams the
    chunk that ends the choice.

    A refusal that was kept apart stands in ``message.refusal``, with no content and no tool call,
    and ends with ``stop``. Other refusals are text, moved into that field where the operator wants
    it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._roles: dict[int, Chunk] = {}

    def whole(self, reply: JsonObject) -> None:
        """Put refusals and decisions into a reply that is not streamed."""
        for choice in reply.get("choices") or []:
            decided = self._add_decision(choice)
            refusal = self.context.refusals.get(_index(choice))
            message = choice.get("message")
            if refusal is not None:
                said = {"role": "assistant", "content": None, "refusal": refusal.text}
                choice |= {"message": said, "logprobs": None, "finish_reason": "stop"}
                choice |= {name: None for name in ("stop_reason", "token_ids") if name in choice}
            elif (
                self.context.tell_refusals
                and decided is not None
                and refused(decided)
                and isinstance(message, dict)
            ):
                message["refusal"], message["content"] = message.get("content"), None
        if len(self.context.decisions) == 1:
            reply[FIELD] = self.describe(next(iter(self.context.decisions.values())))
        add_tokens(reply.get("usage"), "completion_tokens", self._tokens())

    def event(self, event: Chunk) -> list[Chunk]:
        """The chunks that leave in place of this one: refusals stand in for their choices, and a
        choice's first chunk waits until it is known whether it is one of them."""
        choices = event.get("choices") or []
        if (
            self.context.separate_refusals
            and len(choices) == 1
            and (choices[0].get("delta") or {}).get("role")
        ):
            self._roles[_index(choices[0])] = (
                event  # what stands beside it is known with the next chunk
            )
            return []
        sent = self.rest()
        kept = [choice for choice in choices if _index(choice) not in self.context.refusals]
        sent += [
            self._roles.pop(_index(choice)) for choice in kept if _index(choice) in self._roles
        ]
        if choices and not kept:
            return sent
        if not choices:
            add_tokens(event.get("usage"), "completion_tokens", self._tokens())
        else:
            self._annotate(event, kept)
        return [*sent, event]

    def rest(self) -> list[Chunk]:
        """The chunks of refusals that have ended since."""
        sent: list[Chunk] = []
        for index, refusal in self.context.refusals.items():
            if refusal.ended and index in self._roles:
                sent += self._refusal(self._roles.pop(index), index, refusal)
        return sent

    def _refusal(self, role: Chunk, index: int, refusal: Refusal) -> list[Chunk]:
        """A choice that is a refusal: its role, its text, its end."""
        parts: list[tuple[JsonObject, str | None]] = [
            ({"role": "assistant", "content": None}, None),
            ({"refusal": refusal.text}, None),
            ({}, "stop"),
        ]
        made: list[Chunk] = []
        for delta, reason in parts:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            made.append({**role, "choices": [choice]})
        self._annotate(made[-1], made[-1]["choices"])
        return made

    def _annotate(self, chunk: Chunk, choices: list[Chunk]) -> None:
        """Put refusals and decisions into a chunk that leaves with ``choices``."""
        for choice in choices:
            if self._is_refusal_text(choice):
                delta = choice["delta"]
                delta["refusal"], delta["content"] = delta["content"], None
        ended = [choice for choice in choices if choice.get("finish_reason")]
        for choice in ended:
            self._add_decision(choice)
        if len(ended) == 1 and FIELD in ended[0]:
            chunk[FIELD] = ended[0][FIELD]
        if "choices" in chunk:
            chunk["choices"] = choices

    def _is_refusal_text(self, choice: JsonObject) -> bool:
        """Whether a chunk of a chat holds refusal text that belongs in the field ``refusal``."""
        delta = choice.get("delta")
        refusing = self.context.tell_refusals and _index(choice) in self.context.refusing
        return refusing and isinstance(delta, dict) and bool(delta.get("content"))

    def _add_decision(self, choice: JsonObject) -> ChoiceDecision | None:
        decided = self.context.decisions.get(_index(choice))
        if decided is not None:
            choice[FIELD] = self.describe(decided)
        return decided

    def _tokens(self) -> int:
        return sum(refusal.tokens for refusal in self.context.refusals.values())


def _index(choice: JsonObject) -> int:
    return int(choice.get("index", 0))
