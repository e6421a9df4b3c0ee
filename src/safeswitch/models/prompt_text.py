"""The text that a prompt's tokens stand for: what readers of text read and the audit keeps.

Taken from the tokens and from nothing else, so that no text can be shown to a reader that the
model does not read, and none kept from it.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class PromptText:
    """Decodes prompts of one tokenizer.

    Args:
        tokenizer: Of ``transformers``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        marks = {index for index, token in added if token.special}
        self._marks = marks | set(tokenizer.all_special_ids)

    def __call__(self, ids: Sequence[int]) -> str:
        """The text between the special tokens, one run a line; special tokens are left out."""
        runs: list[list[int]] = [[]]
        for token in ids:
            if token in self._marks:
                runs.append([])
            else:
                runs[-1].append(token)
        return "\n".join(str(self._tokenizer.decode(run)) for run in runs if run)


def is_lost(text: str, prompt: str) -> bool:
    """Whether ``text`` does not stand in ``prompt``, whatever became of its white space and case.

    Compared by ASCII letters and digits, which every tokenizer gives back as they were.
    """
    kept = _kept(text)
    return bool(kept) and kept not in _kept(prompt)


def _kept(text: str) -> str:
    return "".join(c for c in text.lower() if c.isascii() and c.isalnum())
