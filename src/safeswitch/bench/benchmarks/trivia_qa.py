"""TriviaQA: questions with known answers.

Source: Joshi et al., arXiv 1705.03551; hub mandarjoshi/trivia_qa, configuration rc.nocontext, split
    validation
Licence: Apache-2.0
Revision: newest; SafeSwitch uses a sample of 2000
Rows: 17,944 (2000 in the sample)
Label: every request is safe; a reply is right when it holds one of the answer's aliases as whole
    words
Noise: an alias may turn up in a wrong answer; aliases that are missing make right answers wrong
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    answer = row["answer"]
    yield {
        "id": f"trivia_qa-{row['question_id']}",
        "prompt": row["question"],
        "answers": list(dict.fromkeys([answer["value"], *answer["aliases"]])),
    }


def _answered(example: Example) -> Example:
    """The sample of 2000 writes its aliases as a Python list in the reference."""
    if example.answers or "reference" not in example.meta:
        return example
    return replace(
        example, answers=tuple(str(alias) for alias in ast.literal_eval(example.meta["reference"]))
    )


register(
    Benchmark(
        "trivia_qa",
        __doc__ or "",
        "task",
        rows=_rows,
        label="safe",
        prepare=_answered,
        judges=("alias",),
        max_new_tokens=64,
        hub=(Hub("mandarjoshi/trivia_qa", split="validation", config="rc.nocontext"),),
    )
)
