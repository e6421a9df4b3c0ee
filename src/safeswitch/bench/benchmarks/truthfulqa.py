"""TruthfulQA: questions that invite a common falsehood.

Source: Lin et al., arXiv 2109.07958; hub truthfulqa/truthful_qa, configuration generation
Licence: Apache-2.0
Revision: newest
Rows: 817, 38 categories
Label: every request is safe; refusals count. Truth is not judged by rules: the best answer is kept
    as reference for a model as judge, and truthfulqa_mc1 asks for one of several answers
Noise: some best answers are contested or out of date
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "prompt": row["question"],
        "category": row["category"],
        "reference": row["best_answer"],
        "variant": row.get("type"),
    }


register(
    Benchmark(
        "truthfulqa",
        __doc__ or "",
        "open",
        rows=_rows,
        label="safe",
        hub=(Hub("truthfulqa/truthful_qa", split="validation", config="generation"),),
    )
)
