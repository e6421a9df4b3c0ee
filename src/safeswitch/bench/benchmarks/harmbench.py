"""HarmBench: text behaviours.

Source: Mazeika et al., arXiv 2402.04249; github.com/centerforaisafety/HarmBench
Licence: MIT
Revision: version 1.0; hub copy walledai/HarmBench (gated), configurations standard, contextual and
    copyright
Rows: 400 (200 standard, 100 contextual, 100 copyright)
Label: every request is unsafe; a contextual behaviour is asked with its context in front
Noise: copyright behaviours ask for texts that most models cannot recite, so refusing and failing
    look alike; the rules judge counts failing as compliance there
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {"prompt": row["prompt"], "context": row.get("context"), "category": row.get("category")}


register(
    Benchmark(
        "harmbench",
        __doc__ or "",
        rows=_rows,
        hub=tuple(
            Hub("walledai/HarmBench", config=config)
            for config in ("standard", "contextual", "copyright")
        ),
        label="unsafe",
        judges=("rules",),
        max_new_tokens=512,
    )
)
