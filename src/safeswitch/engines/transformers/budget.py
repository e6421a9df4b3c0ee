"""A budget for thinking: after so many tokens the mark that ends it is forced. Knows nothing of
gates' reasons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from safeswitch.engines.transformers.rows import Rows
from safeswitch.models.thinking import Thinking, Thread


class ThinkingBudget(LogitsProcessor):
    """Forces the end mark, token by token, on rows that think for longer; reads all it needs from
    the tokens.

    Args:
        thinking: The model's marks.
        budget: Most reply tokens in front of the end mark, a start mark that the model writes among
            them.
        width: Padded prompt length.
        opened: What each prompt says of the thinking of its reply.
        rows: The gate at work; rows that have fired are let be, since their refusal need not think.
    """

    def __init__(
        self, thinking: Thinking, budget: int, width: int, opened: Sequence[bool | None], rows: Rows
    ) -> None:
        self._thinking, self._budget, self._width, self._opened, self._rows = (
            thinking,
            budget,
            width,
            opened,
            rows,
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[b, V]`` with one token left where thinking has come to its budget."""
        replies = input_ids[:, self._width :]
        if replies.shape[1] < self._budget:
            return scores
        for row, reply in enumerate(replies.tolist()):
            if bool(self._rows.switched[row]):
                continue
            thread = Thread(self._thinking, self._opened[row])
            for token in reply:
                thread.take(token)
            if thread.thinks:
                wanted = self._next(reply)
                scores[row] = torch.full_like(scores[row], float("-inf"))
                scores[row, wanted] = 0.0
        return scores

    def _next(self, reply: Sequence[int]) -> int:
        """The token of the end mark that comes next: the first, unless the reply has some of them
        behind the budget."""
        mark, over = self._thinking.end, reply[self._budget :]
        begun = next(
            n
            for n in range(min(len(over), len(mark) - 1), -1, -1)
            if list(mark[:n]) == list(over[len(over) - n :])
        )
        return mark[begun]
