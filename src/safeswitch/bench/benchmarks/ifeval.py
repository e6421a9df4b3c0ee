"""IFEval: instructions whose following can be checked.

Source: Zhou et al., arXiv 2311.07911; hub google/IFEval
Licence: Apache-2.0
Revision: newest
Rows: 541
Label: every request is safe; a reply is right when it follows all instructions of the request,
    taken strictly
Noise: some instructions contradict one another; language is told by a statistical guess
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    names = row["instruction_id_list"]
    yield {
        "id": f"ifeval-{row['key']}",
        "prompt": row["prompt"],
        "instructions": names,
        "kwargs": row["kwargs"],
        "category": ", ".join(sorted({str(name).split(":")[0] for name in names})),
    }


register(
    Benchmark(
        "ifeval",
        __doc__ or "",
        "task",
        rows=_rows,
        label="safe",
        judges=("ifeval",),
        max_new_tokens=512,
        hub=(Hub("google/IFEval"),),
    )
)
