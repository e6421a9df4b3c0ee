"""MT-Bench: first turns.

Source: Zheng et al., arXiv 2306.05685; hub HuggingFaceH4/mt_bench_prompts
Licence: Apache-2.0
Revision: newest
Rows: 80, eight categories
Label: every request is safe; refusals count; judge pairwise gives win rates against the untouched
    model
Noise: first turns only; small
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "id": f"mt_bench-{row['prompt_id']}",
        "prompt": row["prompt"][0],
        "category": row["category"],
    }


register(
    Benchmark(
        "mt_bench",
        __doc__ or "",
        "open",
        rows=_rows,
        label="safe",
        max_new_tokens=512,
        hub=(Hub("HuggingFaceH4/mt_bench_prompts"),),
    )
)
