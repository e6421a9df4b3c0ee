"""What a chat template puts in front of a reply, found in a prompt's tokens.

A prompt that continues behind that mark is a *continued assistant message*: its last token is the
client's own words, so a reader at the prompt's end sees those in place of the request.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from safeswitch.core.json_types import JsonObject

_SWITCHES: tuple[JsonObject, ...] = (
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"thinking": True},
    {"thinking": False},
)
"""Arguments with which templates of reasoning models end their prompts in another way."""
_WORD = "x"


class GenerationPrompt:
    """The ends that prompts of one chat template may have.

    Args:
        ends: Token ids of each.
        blank: Tokens that stand for white space alone.
    """

    def __init__(self, ends: Sequence[Sequence[int]], blank: Collection[int] = ()) -> None:
        unique = {tuple(end) for end in ends if end}
        self.ends = sorted(unique, key=len, reverse=True)
        # who leaves the last line break away has begun a reply all the same
        self._marks = {_without_tail(end, blank) for end in self.ends}

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> GenerationPrompt:
        """Those of a tokenizer's template; none where it has no template, or one of another kind.

        Args:
            tokenizer: Of ``transformers``, with ``apply_chat_template``.
            chat_template: Used instead of the tokenizer's own.
        """
        turns = [{"role": "user", "content": _WORD}]
        found = []
        for switches in _SWITCHES:
            options = {"tokenize": False, **switches}
            if chat_template is not None:
                options["chat_template"] = chat_template
            try:
                bare, whole = (
                    str(
                        tokenizer.apply_chat_template(turns, add_generation_prompt=asked, **options)
                    )
                    for asked in (False, True)
                )
            except Exception:  # a template is foreign code
                continue
            text = _behind(bare, whole)
            if text is not None:
                found.append(_tokens(tokenizer, text))
        last = {token for end in found for token in end}
        return cls(found, {token for token in last if not str(tokenizer.decode([token])).strip()})

    def closes(self, ids: Sequence[int]) -> bool:
        """Whether a prompt ends where a reply begins."""
        return any(tuple(ids[-len(end) :]) == end for end in self.ends)

    def is_continued(self, ids: Sequence[int]) -> bool:
        """Whether a prompt continues behind the last place where a reply begins."""
        row = list(ids)
        starts = [_last(row, mark) for mark in self._marks]
        return max(starts, default=-1) >= 0 and not self.closes(row)


def _behind(bare: str, whole: str) -> str | None:
    """The text between a user turn and its reply; None where the template does not tell."""
    if whole != bare and whole.startswith(bare):
        return whole[len(bare) :]
    # a template without a generation prompt: the mark that ends the user's turn begins the reply
    _, found, rest = whole.rpartition(_WORD)
    return rest if found and rest.strip() else None


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """``text`` in tokens, without those at its start that could merge with what stands before."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if ids and ids[0] not in special:
        ids = ids[1:] or ids
    return ids


def _without_tail(end: tuple[int, ...], blank: Collection[int]) -> tuple[int, ...]:
    """``end`` without the blank tokens behind it; as it is where nothing else would be left."""
    kept = len(end)
    while kept > 1 and end[kept - 1] in blank:
        kept -= 1
    return end[:kept]


def _last(row: list[int], part: tuple[int, ...]) -> int:
    """Index of the last occurrence of ``part`` in ``row``, -1 where there is none."""
    for start in range(len(row) - len(part), -1, -1):
        if tuple(row[start : start + len(part)]) == part:
            return start
    return -1
