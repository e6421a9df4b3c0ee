"""What clients send as prompts, as the engine takes it: put into tokens, known to the model, and
with room for the reply.

Knows nothing of queues, batches and HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safeswitch.core.errors import DataError, ModelError
from safeswitch.core.types import Message, Prompt, Tokens, as_messages
from safeswitch.engines.context import Context
from safeswitch.engines.transformers.requests import reply_room
from safeswitch.models.generation_prompt import GenerationPrompt
from safeswitch.models.language_model import LanguageModel
from safeswitch.serving.errors import ApiError
from safeswitch.switch.gate import Gate
from safeswitch.switch.rules import SAFETY_PROMPT, Rules
from safeswitch.switch.switch import Switch

ClientPrompt = str | list[int] | list[Message]
"""A prompt as a client sends it: text or tokens for the model as they are, or a conversation."""


@dataclass(frozen=True)
class SizedPrompt:
    """A prompt that fits.

    Args:
        prompt: For the engine.
        tokens: Its length.
        limit: Most reply tokens.
        text: What its tokens say, for the audit.
        careful: Whether it can be read under the safety prompt of a policy, and has room for it.
    """

    prompt: Prompt
    tokens: int
    limit: int
    text: str
    careful: bool = False


class PromptReader:
    """See the module text.

    Args:
        lm: The model.
        max_tokens: Longest reply that may be asked for.
    """

    def __init__(self, lm: LanguageModel, max_tokens: int) -> None:
        self.lm, self.max_tokens = lm, max_tokens
        template = None if lm.chat_template == "plain" else lm.chat_template
        self._reply_mark = GenerationPrompt.of(lm.tokenizer, template)

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens.

        Raises:
            ApiError: a conversation that cannot be put into tokens.
        """
        try:
            return self.lm.encode([prompt], check=False)[0]
        except DataError as error:
            raise ApiError(400, str(error), param="messages") from error
        except ModelError as error:
            raise ApiError(
                400, "the model's chat template refuses this conversation", param="messages"
            ) from error

    def check_length(self, given: ClientPrompt) -> None:
        """Refuse what cannot fit, whatever its tokens are, before they are counted."""
        longest = (
            self.lm.context_length if given and isinstance(given[0], int) else self.lm.longest_text
        )
        if longest is not None and length_of(given) > longest:
            raise self._too_long(f"a prompt of {length_of(given)} characters or tokens cannot fit")

    def _too_long(self, reason: str) -> ApiError:
        message = f"this model's context holds {self.lm.context_length} tokens; {reason}"
        return ApiError(400, message, param="messages", code="context_length_exceeded")

    def sized(
        self,
        given: ClientPrompt,
        switch: Switch,
        policy: str,
        limit: int | None,
        context: Context,
    ) -> SizedPrompt:
        """A prompt as the engine takes it, with room for the reply in every form in which the model
        may read it.

        Raises:
            ApiError: a prompt that cannot be used, or more tokens than there is room for.
        """
        edits, gate = (
            policy == "enforce" and switch.actuator.place == "prompt",
            Gate() if policy == "off" else switch.gate,
        )
        prompt = self._prompt(given)
        if edits and isinstance(prompt, Tokens):
            raise ApiError(400, "the switch in force edits conversations; use /v1/chat/completions")
        whole = self.encode(prompt)
        # stage 1 reads the last token: behind the mark where a reply begins it is the client's own
        if policy != "off" and self._reply_mark.is_continued(whole):
            raise ApiError(
                400,
                "prefilled replies are not served: the prompt continues behind the mark that begins "
                "a reply",
                param="prompt",
            )
        edited = self.encode(switch.actuator.edit(as_messages(prompt))) if edits else []
        self.check_known([*whole, *edited])
        longest, needed = max(len(whole), len(edited)), reply_room(gate, limit or 1)
        text = self.lm.prompt_text(whole)
        careful = self._careful(prompt, context)
        if self.lm.context_length is None:
            return SizedPrompt(
                prompt, len(whole), limit or self.max_tokens, text, careful is not None
            )
        room = self.lm.context_length - longest
        if room < needed:
            raise self._too_long(f"the prompt takes {longest} and the reply {needed}")
        behind = reply_room(gate, room) - room  # what a prober appends to the reply
        limit = limit or min(room - behind, self.max_tokens)
        fits = careful is not None and careful + limit <= self.lm.context_length
        return SizedPrompt(prompt, len(whole), limit, text, fits)

    def _careful(self, prompt: Prompt, context: Context) -> int | None:
        """Tokens of a conversation under the safety prompt of ``careful``; None where no rule asks
        for it, nothing is answered, or the prompt is no conversation."""
        if context.score_only or context.rules is None or "careful" not in context.rules.acts:
            return None
        if isinstance(prompt, Tokens):
            return None
        return len(self.encode(SAFETY_PROMPT.edit(as_messages(prompt))))

    def _prompt(self, given: ClientPrompt) -> Prompt:
        """For the engine; text and tokens go to the model as they are.

        Raises:
            ApiError: no token at all, or one that the model does not know.
        """
        if not isinstance(given, str) and given and isinstance(given[0], Message):
            return given
        ids: Any = list(self.lm.tokenizer(given)["input_ids"]) if isinstance(given, str) else given
        if not ids:
            raise ApiError(400, "the prompt is empty", param="prompt")
        self.check_known(ids)
        return Tokens(tuple(ids), self.lm.prompt_text(ids))

    def check_known(self, ids: Sequence[int]) -> None:
        """Refuse tokens that the model cannot read, of which its tokenizer may have some.

        Raises:
            ApiError: there is one.
        """
        if max(ids, default=0) >= self.lm.input_size:
            raise ApiError(
                400,
                f"the prompt has token {max(ids)}; this model's are smaller than "
                f"{self.lm.input_size}",
            )


def rules_for(context: Context, sized: SizedPrompt) -> Rules | None:
    """The rules for a prompt: what cannot be answered with care is refused."""
    rules = context.rules
    if context.score_only:  # what is only read needs no room for a safety prompt
        return rules
    return rules if rules is None or sized.careful else rules.without_careful()


def length_of(given: ClientPrompt) -> int:
    """Characters of text, or tokens."""
    if isinstance(given, str):
        return len(given)
    return sum(len(part.content) if isinstance(part, Message) else 1 for part in given)
