"""Conversations to token ids, through a model's chat template. Knows tokenizers, and nothing of
models.

The text of every turn must arrive in the prompt. A template may set it differently (white space
around and between words) and may leave out the thinking of earlier replies; where it drops or
refuses a leading system turn, as Gemma's does, that turn's text goes in front of the first user
turn, and anything else that it drops is an error: a model would answer, and a prober read,
something else than was asked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from safeswitch.core.errors import (
    ContextLengthError,
    DataError,
    ModelError,
    SettingError,
    TemplateError,
)
from safeswitch.core.shown import shown
from safeswitch.core.types import Message, Prompt, Tokens, as_messages
from safeswitch.models.thinking import KNOWN
from safeswitch.models.vision import Encoded, turn_parts

_log = logging.getLogger("safeswitch.models")


def read_template(given: str | None) -> str | None:
    """The text of a template file; ``plain`` and None as they are.

    Raises:
        SettingError: no such file, or none that can be read.
    """
    if given == "plain" and Path(given).is_file():
        raise SettingError(
            "chat template: 'plain' is the bare text, and a file here; write ./plain for the file, "
            "or rename it"
        )
    if given is None or given == "plain":
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"chat template: {given!r} is neither 'plain' nor a readable file: {error}"
        ) from error


@dataclass(frozen=True)
class ChatEncoder:
    """A tokenizer with its template.

    Args:
        tokenizer: The model's.
        model_id: For messages.
        chat_template: A Jinja template to use instead of the tokenizer's; ``"plain"`` joins the
            turns' text with line breaks.
        processor: Of a model that takes images; its template is then taken, and turns are handed to
            it in parts.
        no_images: Why images cannot be taken, where there is no processor.
    """

    tokenizer: PreTrainedTokenizerBase
    model_id: str
    chat_template: str | None = None
    processor: Any = None
    no_images: str = "it reads text only"

    def encode(
        self, prompts: Sequence[Prompt], *, limit: int | None, room: int | Sequence[int] = 0
    ) -> list[Encoded]:
        """Each prompt as the model is given it, ready for the reply's first token, or for its next
        where one was begun.

        Args:
            prompts: Text, messages or examples; what is given as tokens is taken as it is.
            limit: Tokens that the context holds, None for any number.
            room: Reply tokens that must still fit, for all prompts or for each.

        Raises:
            ModelError: no chat template.
            TemplateError: it refuses a conversation, or drops the text of a turn.
            ContextLengthError: a prompt that does not fit.
            DataError: images, where the model takes none, or that cannot be read.
        """
        rows = [self._numbered(i, prompt, len(prompts)) for i, prompt in enumerate(prompts)]
        rooms = [room] * len(rows) if isinstance(room, int) else room
        for i, (row, wanted) in enumerate(zip(rows, rooms, strict=True)):
            size = len(row.ids)
            if limit is not None and size + wanted > limit:
                raise ContextLengthError(
                    f"prompt {i} has {size} tokens and {wanted} reply tokens are asked for, but "
                    f"{self.model_id} takes {limit} in all; shorten the prompt or ask for at most "
                    f"{max(0, limit - size)} new tokens"
                )
        return rows

    @property
    def template(self) -> Any:
        """The template in force, None where there is none."""
        own = self.processor.chat_template if self.processor is not None else None
        return self.chat_template or own or self.tokenizer.chat_template

    def _numbered(self, i: int, prompt: Prompt, count: int) -> Encoded:
        """One of several prompts; errors say which."""
        try:
            return self._encode_one(prompt)
        except (DataError, TemplateError) as error:
            if count == 1:
                raise
            raise type(error)(f"prompt {i}: {error}") from error

    def _encode_one(self, prompt: Prompt) -> Encoded:
        if isinstance(prompt, Tokens):
            return Encoded(list(prompt.ids))
        messages = as_messages(prompt)
        if any(m.images for m in messages) and (
            self.processor is None or self.chat_template == "plain"
        ):
            reason = (
                self.no_images
                if self.processor is None
                else "chat_template='plain' gives it the turns' text alone"
            )
            raise DataError(
                f"the prompt has images, but {self.model_id} cannot be given any: {reason}"
            )
        if self.chat_template == "plain":
            return Encoded(
                list(self.tokenizer("\n".join(m.content for m in messages))["input_ids"])
            )
        if not self.template:
            raise ModelError(
                f"{self.model_id} has no chat template; give one with chat_template=..., or "
                "chat_template='plain' to send the bare text of a base model"
            )
        try:
            return self._whole(messages)
        except DataError:
            raise
        except (
            Exception
        ) as error:  # a template is foreign code: jinja's errors, and any of Python's
            merged = _without_system(messages)
            if merged is None:
                raise self._refused(error) from error
        try:
            encoded = self._whole(merged)
        except Exception as error:
            raise self._refused(error) from error
        _tell_of_system(self.model_id)
        return encoded

    def _whole(self, messages: Sequence[Message]) -> Encoded:
        """Through the template, with the text of every turn.

        Raises:
            TemplateError: text that does not arrive.
        """
        lost = lost_turns(self._rendered(messages), messages)
        if lost:
            turn = messages[lost[0]]
            raise TemplateError(
                f"the chat template of {self.model_id} drops text of turn {lost[0]} ({turn.role}), "
                f"which the model would not read: {turn.content!r:.60}; give another template with "
                "chat_template=..."
            )
        return self._through_template(messages)

    def header(self) -> list[int]:
        """The tokens that the template puts between a user turn and the reply, empty where there
        are none."""
        if self.chat_template == "plain":
            return []
        turns = (Message("user", "a"),)
        bare, whole = (
            self._through_template(turns, prompting=prompting).ids for prompting in (False, True)
        )
        return whole[len(bare) :] if whole[: len(bare)] == bare else []

    def _through_template(self, messages: Sequence[Message], *, prompting: bool = True) -> Encoded:
        encoded = self._apply(messages, prompting=prompting, tokenize=True, return_dict=True)
        if self.processor is None:
            return Encoded(list(encoded["input_ids"]))
        ids = encoded["input_ids"][0].tolist()
        if not any(m.images for m in messages):
            return Encoded(ids)
        return Encoded(
            ids, {k: v for k, v in encoded.items() if k not in ("input_ids", "attention_mask")}
        )

    def _rendered(self, messages: Sequence[Message]) -> str:
        """The prompt as text."""
        return str(self._apply(messages, prompting=True, tokenize=False))

    def _apply(
        self, messages: Sequence[Message], *, prompting: bool, tokenize: bool, **options: Any
    ) -> Any:
        """What the template makes of a conversation: text, or tokens."""
        begun = messages[-1].role == "assistant"
        options |= {
            "add_generation_prompt": prompting and not begun,
            "continue_final_message": begun,
        }
        if self.processor is None:
            turns = [{"role": m.role, "content": m.content} for m in messages]
            own = self.chat_template
            return self.tokenizer.apply_chat_template(
                turns, chat_template=own, tokenize=tokenize, **options
            )
        parts = [{"role": m.role, "content": turn_parts(m.content, m.images)} for m in messages]
        if tokenize:
            options["return_tensors"] = "pt"
        return self.processor.apply_chat_template(
            parts, chat_template=self.template, tokenize=tokenize, **options
        )

    def _refused(self, error: Exception) -> TemplateError:
        if isinstance(error, TemplateError):
            return error
        return TemplateError(
            f"the chat template of {self.model_id} refuses the conversation: "
            f"{type(error).__name__}: {error}"
        )


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation with a leading system turn's text in front of the first user turn; None
    where there are not both.

    For templates that know no system turn (Gemma's), whether they refuse it or drop it.
    """
    first = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if first is None or messages[0].role != "system":
        return None
    joined = messages[first].around(before=f"{messages[0].content}\n\n")
    return [*messages[1:first], joined, *messages[first + 1 :]]


def lost_turns(rendered: str, messages: Sequence[Message]) -> list[int]:
    """The turns whose text does not stand in a rendered prompt, by number, first to last.

    White space counts as one space. Longer texts are looked for first and taken out where they are
    found, so that a text does not count as there because another one holds it, and one that two
    turns have must be there twice.
    """
    left = _set_plain(rendered)
    texts = [(i, text) for i, message in enumerate(messages) for text in _texts(message)]
    lost = []
    for i, text in sorted(texts, key=lambda one: len(one[1]), reverse=True):
        found = next((form for form in (text, _without_thinking(text)) if form in left), None)
        if found is None:
            lost.append(i)
        elif found:
            left = left.replace(found, "\0", 1)
    return sorted(set(lost))


def _texts(message: Message) -> list[str]:
    """The texts of a turn, set plainly: one, or those between its images."""
    cuts = [0, *sorted(picture.at for picture in message.images), len(message.content)]
    texts = [_set_plain(message.content[start:end]) for start, end in pairwise(cuts)]
    return [text for text in texts if text]


def _without_thinking(text: str) -> str:
    """What stands behind the last end mark of thinking: templates leave out the thinking of earlier
    replies."""
    last = max(text.rfind(end) + len(end) if end in text else 0 for _, end in KNOWN)
    return text[last:].strip()


def _set_plain(text: str) -> str:
    return " ".join(text.split())


@cache
def _tell_of_system(model_id: str) -> None:
    """Once for each model: where system text goes is no secret, and no news at every prompt
    either."""
    _log.warning(
        "the chat template of %s takes no system turn: its text is put in front of the first user "
        "turn",
        shown(model_id),
    )
