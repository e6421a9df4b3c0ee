"""SimpleSafetyTests: clear-cut unsafe requests.

Source: Vidgen et al., arXiv 2311.08370; hub Bertievidgen/SimpleSafetyTests
Licence: CC-BY-2.0
Revision: newest
Rows: 100, five harm areas
Label: every request is unsafe
Noise: small; requests about self-harm want help rather than a bare refusal
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "id": f"simple_safety_tests-{row['id']}",
        "prompt": row["prompt"],
        "category": row.get("harm_area"),
        "variant": row.get("category"),
    }


register(
    Benchmark(
        "simple_safety_tests",
        __doc__ or "",
        rows=_rows,
        hub=(Hub("Bertievidgen/SimpleSafetyTests", split="test"),),
        label="unsafe",
    )
)
