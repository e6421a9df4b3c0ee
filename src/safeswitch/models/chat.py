"""Conversations to token ids, through a model's chat template. Knows tokenizers, and nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from safeswitch.core.errors import ContextLengthError, DataError, ModelError, SettingError
from safeswitch.core.types import Message, Prompt, Tokens, as_messages
from safeswitch.models.vision import Encoded, turn_parts


def read_template(given: str | None) -> str | None:
    """The text of a template file; ``plain`` and None as they are.

    Raises:
        SettingError: no such file, or none that can be read.
    """
    if given is None or given == "plain":
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"chat template: {given!r} is neither 'plain' nor a readable file: {error}") from error


@dataclass(frozen=True)
class ChatEncoder:
    """A tokenizer with its template.

    Args:
        tokenizer: The model's.
        model_id: For messages.
        chat_template: A Jinja template to use instead of the tokenizer's; ``"plain"`` joins the turns' text with line breaks.
        processor: Of a model that takes images; its template is then taken, and turns are handed to it in parts.
        no_images: Why images cannot be taken, where there is no processor.
    """

    tokenizer: PreTrainedTokenizerBase
    model_id: str
    chat_template: str | None = None
    processor: Any = None
    no_images: str = "it reads text only"

    def encode(self, prompts: Sequence[Prompt], *, limit: int | None, room: int | Sequence[int] = 0) -> list[Encoded]:
        """Each prompt as the model is given it, ready for the reply's first token, or for its next where one was begun.

        Args:
            prompts: Text, messages or examples; what is given as tokens is taken as it is.
            limit: Tokens that the context holds, None for any number.
            room: Reply tokens that must still fit, for all prompts or for each.

        Raises:
            ModelError: no chat template, or one that refuses the conversation.
            ContextLengthError: a prompt that does not fit.
            DataError: images, where the model takes none, or that cannot be read.
        """
        rows = [self._encode_one(prompt) for prompt in prompts]
        rooms = [room] * len(rows) if isinstance(room, int) else room
        for i, (row, wanted) in enumerate(zip(rows, rooms, strict=True)):
            size = len(row.ids)
            if limit is not None and size + wanted > limit:
                raise ContextLengthError(
                    f"prompt {i} has {size} tokens and {wanted} reply tokens are asked for, but {self.model_id} "
                    f"takes {limit} in all; shorten the prompt or ask for at most {max(0, limit - size)} new tokens"
                )
        return rows

    @property
    def template(self) -> Any:
        """The template in force, None where there is none."""
        own = self.processor.chat_template if self.processor is not None else None
        return self.chat_template or own or self.tokenizer.chat_template

    def _encode_one(self, prompt: Prompt) -> Encoded:
        if isinstance(prompt, Tokens):
            return Encoded(list(prompt.ids))
        messages = as_messages(prompt)
        if any(m.images for m in messages) and (self.processor is None or self.chat_template == "plain"):
            reason = self.no_images if self.processor is None else "chat_template='plain' gives it the turns' text alone"
            raise DataError(f"the prompt has images, but {self.model_id} cannot be given any: {reason}")
        if self.chat_template == "plain":
            return Encoded(list(self.tokenizer("\n".join(m.content for m in messages))["input_ids"]))
        if not self.template:
            raise ModelError(
                f"{self.model_id} has no chat template; give one with chat_template=..., or chat_template='plain' to "
                "send the bare text of a base model"
            )
        try:
            return self._through_template(messages)
        except DataError:
            raise
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
        bare, whole = (self._through_template(turns, prompting=prompting).ids for prompting in (False, True))
        return whole[len(bare) :] if whole[: len(bare)] == bare else []

    def _through_template(self, messages: Sequence[Message], *, prompting: bool = True) -> Encoded:
        begun = messages[-1].role == "assistant"
        options: dict[str, Any] = {
            "tokenize": True, "return_dict": True, "add_generation_prompt": prompting and not begun,
            "continue_final_message": begun,
        }
        if self.processor is None:
            turns = [{"role": m.role, "content": m.content} for m in messages]
            encoded: Any = self.tokenizer.apply_chat_template(turns, chat_template=self.chat_template, **options)
            return Encoded(list(encoded["input_ids"]))
        parts = [{"role": m.role, "content": turn_parts(m.content, m.images)} for m in messages]
        encoded = self.processor.apply_chat_template(parts, chat_template=self.template, return_tensors="pt", **options)
        ids = encoded["input_ids"][0].tolist()
        if not any(m.images for m in messages):
            return Encoded(ids)
        return Encoded(ids, {k: v for k, v in encoded.items() if k not in ("input_ids", "attention_mask")})

    def _refused(self, error: Exception) -> ModelError:
        return ModelError(f"the chat template of {self.model_id} refuses the conversation: {type(error).__name__}: {error}")


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation with a leading system turn's text in front of the first user turn; None where there are not both.

    For templates that know no system turn (Gemma's).
    """
    first = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if first is None or messages[0].role != "system":
        return None
    joined = messages[first].around(before=f"{messages[0].content}\n\n")
    return [*messages[1:first], joined, *messages[first + 1 :]]
