"""IFEval: instructions whose following can be checked.

Source: Zhou et al., arXiv 2311.07911; hub google/IFEval
Licence: Apache-2.0
Revision: newest
Rows: 541
Label: every request is safe; refusals count here. The checks themselves are those of lm-evaluation-harness (task ifeval)
Noise: some instructions contradict one another
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safeswitch.evaluation.benchmark import Benchmark, Hub, register


def _rows(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    kinds = sorted({str(name).split(":")[0] for name in row["instruction_id_list"]})
    yield {"id": f"ifeval-{row['key']}", "prompt": row["prompt"], "category": ", ".join(kinds)}


register(
    Benchmark("ifeval", __doc__ or "", "open", rows=_rows, label="safe", max_new_tokens=512, hub=(Hub("google/IFEval"),))
)
