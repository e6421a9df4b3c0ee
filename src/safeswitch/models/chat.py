"""Conversations to token ids, through a model's chat template. Knows tokenizers, and nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from safeswitch.core.errors import ContextLengthError, ModelError
from safeswitch.core.types import Message, Prompt, Tokens, as_messages


@dataclass(frozen=True)
class ChatEncoder:
    """A tokenizer with its template.

    Args:
        tokenizer: The model's.
        model_id: For messages.
        chat_template: A Jinja template to use instead of the tokenizer's; ``"plain"`` joins the turns' text with line breaks.
    """

    tokenizer: PreTrainedTokenizerBase
    model_id: str
    chat_template: str | None = None

    def encode(self, prompts: Sequence[Prompt], *, limit: int | None, room: int | Sequence[int] = 0) -> list[list[int]]:
        """Token ids of each prompt, ready for the reply's first token.

        Args:
            prompts: Text, messages or examples; what is given as tokens is taken as it is.
            limit: Tokens that the context holds, None for any number.
            room: Reply tokens that must still fit, for all prompts or for each.

        Raises:
            ModelError: no chat template, or one that refuses the conversation.
            ContextLengthError: a prompt that does not fit.
        """
        rows = [self._encode_one(prompt) for prompt in prompts]
        rooms = [room] * len(rows) if isinstance(room, int) else room
        for i, (row, wanted) in enumerate(zip(rows, rooms, strict=True)):
            if limit is not None and len(row) + wanted > limit:
                raise ContextLengthError(
                    f"prompt {i} has {len(row)} tokens and {wanted} reply tokens are asked for, but {self.model_id} "
                    f"takes {limit} in all; shorten the prompt or ask for at most {max(0, limit - len(row))} new tokens"
                )
        return rows

    def _encode_one(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Tokens):
            return list(prompt.ids)
        messages = as_messages(prompt)
        if self.chat_template == "plain":
            return list(self.tokenizer("\n".join(m.content for m in messages))["input_ids"])
        if not (self.chat_template or self.tokenizer.chat_template):
            raise ModelError(
                f"{self.model_id} has no chat template; give one with chat_template=..., or chat_template='plain' to "
                "send the bare text of a base model"
            )
        try:
            return self._through_template(messages)
        except Exception as error:  # a template is foreign code: jinja's errors, and any of Python's
            merged = _without_system(messages)
            if merged is None:
                raise self._refused(error) from error
        try:
            return self._through_template(merged)
        except Exception as error:
            raise self._refused(error) from error

    def header(self) -> list[int]:
        """The tokens that the template puts between a user turn and the reply, empty where there are none."""
        if self.chat_template == "plain":
            return []
        turns = (Message("user", "a"),)
        bare, whole = (self._through_template(turns, prompting=prompting) for prompting in (False, True))
        return whole[len(bare) :] if whole[: len(bare)] == bare else []

    def _through_template(self, messages: Sequence[Message], *, prompting: bool = True) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        encoded: Any = self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, add_generation_prompt=prompting, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def _refused(self, error: Exception) -> ModelError:
        return ModelError(f"the chat template of {self.model_id} refuses the conversation: {type(error).__name__}: {error}")


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation with a leading system turn's text in front of the first user turn; None where there are not both.

    For templates that know no system turn (Gemma's).
    """
    first = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if first is None or messages[0].role != "system":
        return None
    joined = Message("user", f"{messages[0].content}\n\n{messages[first].content}")
    return [*messages[1:first], joined, *messages[first + 1 :]]
