"""AlpacaEval: ordinary instructions.

Source: Li et al., github.com/tatsu-lab/alpaca_eval; hub tatsu-lab/alpaca_eval, alpaca_eval.json,
    configuration alpaca_eval, split eval
Licence: CC-BY-NC-4.0
Revision: newest
Rows: 805
Label: every request is safe; refusals count; judge pairwise gives win rates against the untouched
    model
Noise: a few instructions are themselves delicate
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "prompt": row["instruction"],
        "reference": row.get("output"),
        "category": row.get("dataset"),
    }


register(
    Benchmark(
        "alpaca_eval",
        __doc__ or "",
        "open",
        rows=_rows,
        label="safe",
        max_new_tokens=512,
        hub=(Hub("tatsu-lab/alpaca_eval", split="eval", config="alpaca_eval"),),
    )
)
