"""Where a reasoning model stops thinking and begins to answer: its marks, found in tokenizer and
chat template.

A reply may begin with thinking between two marks (``<think> ... </think>``); some templates open it
in the prompt, or close it there at once. What follows the first end mark is the answer. Knows
tokens, and nothing of probers or decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from safeswitch.core.errors import SettingError

KNOWN: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<thought>", "</thought>"),
)
"""Marks that are looked for, in this order."""


@dataclass(frozen=True, eq=False)
class Thinking:
    """The marks around a model's thinking.

    Args:
        marks: Their text, start and end.
        start: Token ids of the start mark.
        end: Token ids of the end mark.
        tokenizer: Tells which tokens are white space.
    """

    marks: tuple[str, str]
    start: tuple[int, ...]
    end: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, marks: tuple[str, str]) -> Thinking:
        """The marks as this tokenizer writes them.

        Raises:
            SettingError: a mark that is empty.
        """
        start, end = (
            tuple(tokenizer(mark, add_special_tokens=False)["input_ids"]) for mark in marks
        )
        if not (start and end):
            raise SettingError(f"thinking: both marks need at least one token; got {marks!r}")
        return cls(marks, start, end, tokenizer)

    @classmethod
    def find(cls, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> Thinking | None:
        """The first of the ``KNOWN`` marks whose end is a token of its own, or of which the
        template speaks, if any are."""
        vocabulary, template = tokenizer.get_vocab(), chat_template or ""
        for marks in KNOWN:
            if marks[1] in vocabulary or any(mark in template for mark in marks):
                return cls.of(tokenizer, marks)
        return None

    def opened(self, begun: Sequence[int]) -> bool | None:
        """What the tokens in front of a reply say: True, its thinking is open; False, it is over;
        None, nothing."""
        for at in range(len(begun), 0, -1):
            if _ends_with(begun[:at], self.end):
                return False
            if _ends_with(begun[:at], self.start):
                return True
        return None

    def answer_start(self, reply: Iterable[int], opened: bool | None) -> int | None:
        """Tokens of ``reply`` that are thinking, end mark included; None where the answer has not
        begun."""
        thread = Thread(self, opened)
        for token in reply:
            thread.take(token)
        return thread.answer

    def visible(self, reply: Sequence[int], opened: bool | None, *, whole: bool) -> list[int]:
        """The answer's tokens; where it has not begun nothing, or everything when ``whole`` (a
        refusal that never thought)."""
        start = self.answer_start(reply, opened)
        return list(reply[start:]) if start is not None else list(reply) if whole else []


class Thread:
    """Follows one reply token by token.

    Args:
        thinking: The marks.
        opened: What the prompt says, see :meth:`Thinking.opened`.

    Attributes:
        answer: Reply tokens in front of the answer; None while that has not begun.
    """

    def __init__(self, thinking: Thinking, opened: bool | None) -> None:
        self._thinking, self._opened = thinking, opened
        self._tokens: list[int] = []
        self.answer: int | None = 0 if opened is False else None

    @property
    def thinks(self) -> bool:
        """Whether thinking is open."""
        return self.answer is None and self._opened is True

    def take(self, token: int) -> None:
        """The reply's next token."""
        if self.answer is not None:
            return
        self._tokens.append(token)
        if self._opened is None:
            self._opened = self._decides()
            if self._opened is False:
                self.answer = 0
                return
        if self._opened and _ends_with(self._tokens, self._thinking.end):
            self.answer = len(self._tokens)

    def _decides(self) -> bool | None:
        """Whether the reply, which the prompt left open, begins with thinking; None while only
        white space or a part of the start mark has come."""
        thinking, first = self._thinking, 0
        while (
            first < len(self._tokens)
            and not str(thinking.tokenizer.decode([self._tokens[first]])).strip()
        ):
            first += 1
        begun = tuple(self._tokens[first:])
        if begun[: len(thinking.start)] == thinking.start:
            return True
        return None if begun == thinking.start[: len(begun)] else False


def _ends_with(tokens: Sequence[int], mark: Sequence[int]) -> bool:
    return tuple(tokens[-len(mark) :]) == tuple(mark)
