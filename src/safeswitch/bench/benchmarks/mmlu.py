"""MMLU: multiple-choice questions of 57 subjects.

Source: Hendrycks et al., arXiv 2009.03300; hub cais/mmlu, configuration all, split test
Licence: MIT
Revision: newest
Rows: 14,042
Label: every request is safe; asked without examples, answered with a letter, which the judge reads
Noise: several per cent of wrong keys; not comparable with five-shot figures by likelihood (those
    come from lm-evaluation-harness)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.bench.judges.answers import LETTERS
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example, Message

ASK = "Answer with the letter of the right option."


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True)
    )
    yield {
        "prompt": f"{row['question']}\n{options}",
        "reference": LETTERS[row["answer"]],
        "category": row["subject"],
    }


def _with_question(example: Example) -> Example:
    """Ask for the letter, and take the reference as answer."""
    question = Message("user", f"{example.prompt}\n\n{ASK}")
    return replace(
        example, messages=(*example.messages[:-1], question), answers=(example.meta["reference"],)
    )


register(
    Benchmark(
        "mmlu",
        __doc__ or "",
        "task",
        rows=_rows,
        label="safe",
        prepare=_with_question,
        judges=("letter",),
        max_new_tokens=64,
        stem="mmlu_sample",
        hub=(Hub("cais/mmlu", split="test", config="all"),),
    )
)
