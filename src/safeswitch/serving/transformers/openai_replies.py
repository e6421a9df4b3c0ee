"""What clients are sent: OpenAI's reply and chunk objects. Knows nothing of models or HTTP."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from safeswitch.core.json_types import JsonMapping, JsonObject


@dataclass(frozen=True)
class ReplyObjects:
    """The objects of one request's reply.

    Args:
        model: Name under which the model is served.
        chat: Whether it is a chat completion.
        usage_in_chunks: Whether chunks carry an empty ``usage``, as they do where the last one
            holds it.
    """

    model: str
    chat: bool
    usage_in_chunks: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[tuple[str, str]], usage: Mapping[str, int]) -> JsonObject:
        """A reply that is not streamed, from text and finish reason of each choice."""
        name = "chat.completion" if self.chat else "text_completion"
        made = [
            {"index": i, **self._said(text), **_end(reason)}
            for i, (text, reason) in enumerate(choices)
        ]
        return {**self._head(name), "choices": made, "usage": dict(usage)}

    def opening(self, index: int) -> bytes:
        """The chunk that begins a choice: it names the role; completions have none."""
        return (
            self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)
            if self.chat
            else b""
        )

    def piece(self, index: int, text: str) -> bytes:
        """A chunk of text."""
        return self._chunk(
            index, {"delta": {"content": text}} if self.chat else {"text": text}, None
        )

    def closing(self, index: int, reason: str) -> bytes:
        """The chunk that ends a choice."""
        return self._chunk(index, {"delta": {}} if self.chat else {"text": ""}, reason)

    def usage(self, usage: Mapping[str, int]) -> bytes:
        """The chunk that ends a stream whose client asked for its usage."""
        return event({**self._head(self._chunk_name), "choices": [], "usage": dict(usage)})

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, name: str) -> JsonObject:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        return {
            "id": prefix + self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
        }

    def _said(self, text: str) -> JsonObject:
        return (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.chat
            else {"text": text}
        )

    def _chunk(self, index: int, said: JsonMapping, reason: str | None) -> bytes:
        choices = [{"index": index, **said, **_end(reason)}]
        return event(
            {
                **self._head(self._chunk_name),
                "choices": choices,
                **({"usage": None} if self.usage_in_chunks else {}),
            }
        )


DONE = b"data: [DONE]\n\n"


def event(content: JsonMapping) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Tokens read and written."""
    total = prompt_tokens + completion_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": total,
    }


def _end(reason: str | None) -> JsonObject:
    return {"finish_reason": reason, "logprobs": None}
