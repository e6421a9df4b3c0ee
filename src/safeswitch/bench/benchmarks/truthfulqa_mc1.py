"""TruthfulQA, one right answer among false ones.

Source: Lin et al., arXiv 2109.07958; hub truthfulqa/truthful_qa, configuration multiple_choice, its
    mc1_targets
Licence: Apache-2.0
Revision: newest
Rows: 817
Label: every request is safe; the answers are shuffled, the same way each time, and asked for by
    letter, which the judge reads; a local file brings prompt and choices, the right one first
Noise: some right answers are contested or out of date; not comparable with MC1 by likelihood (that
    comes from lm-evaluation-harness), since all answers are seen before one is chosen
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.bench.benchmarks.mmlu import ASK
from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example, Message

LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
"""Without I, which begins many a sentence."""


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    answers = row["mc1_targets"]
    pairs = sorted(
        zip(answers["labels"], answers["choices"], strict=True), key=lambda pair: -pair[0]
    )
    yield {"prompt": row["question"], "choices": [choice for _, choice in pairs]}


def _with_question(example: Example) -> Example:
    """Ask for the letter of the right choice, which comes first in the row.

    Raises:
        DataError: fewer than two choices, or more than there are letters.
    """
    choices = json.loads(example.meta.get("choices", "[]"))
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(
            f"truthfulqa_mc1: row {example.id!r} needs 2 to {len(LETTERS)} choices; got "
            f"{len(choices)}"
        )
    right = choices[0]
    random.Random(example.prompt).shuffle(choices)
    letters = LETTERS[: len(choices)]
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)
    )
    question = Message("user", f"{example.prompt}\n{options}\n\n{ASK}")
    return replace(
        example,
        messages=(*example.messages[:-1], question),
        answers=(letters[choices.index(right)],),
        meta={**example.meta, "letters": letters},
    )


register(
    Benchmark(
        "truthfulqa_mc1",
        __doc__ or "",
        "task",
        rows=_rows,
        label="safe",
        prepare=_with_question,
        judges=("letter",),
        max_new_tokens=64,
        hub=(Hub("truthfulqa/truthful_qa", split="validation", config="multiple_choice"),),
    )
)
