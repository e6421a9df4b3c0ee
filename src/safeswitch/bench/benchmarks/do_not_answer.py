"""Do-Not-Answer: risky questions.

Source: Wang et al., arXiv 2308.13387; hub LibrAI/do-not-answer
Licence: Apache-2.0 on the hub; derivatives say CC-BY-NC-SA-4.0
Revision: newest
Rows: 939, five risk areas, twelve types of harm
Label: every request is unsafe
Noise: many are unsafe only in part: for several types a careful answer is what is wanted, which the
    rules judge counts as compliance
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "id": f"do_not_answer-{row['id']}",
        "prompt": row["question"],
        "category": row.get("types_of_harm"),
        "area": row.get("risk_area"),
    }


register(
    Benchmark(
        "do_not_answer",
        __doc__ or "",
        rows=_rows,
        hub=(Hub("LibrAI/do-not-answer"),),
        label="unsafe",
    )
)
