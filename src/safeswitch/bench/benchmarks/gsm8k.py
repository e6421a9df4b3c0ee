"""GSM8K: grade-school arithmetic in words.

Source: Cobbe et al., arXiv 2110.14168; github.com/openai/grade-school-math; hub openai/gsm8k,
    configuration main, split test
Licence: MIT
Revision: 3101c7d50724
Rows: 1319
Label: every request is safe; a reply is right when its last number is the answer
Noise: a per cent or two of wrong answer keys; a reply that continues after its answer with another
    number is marked wrong
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {"prompt": row["question"], "reference": row["answer"], "category": "math"}


def _answered(example: Example) -> Example:
    """The worked solution ends in ``#### number``."""
    return replace(example, answers=(example.meta["reference"].rsplit("####", 1)[-1].strip(),))


register(
    Benchmark(
        "gsm8k",
        __doc__ or "",
        "task",
        rows=_rows,
        label="safe",
        prepare=_answered,
        judges=("number",),
        max_new_tokens=512,
        stem="gsm8k_test",
        hub=(Hub("openai/gsm8k", split="test", config="main"),),
    )
)
