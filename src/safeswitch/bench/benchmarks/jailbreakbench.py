"""JailbreakBench: harmful behaviours and their benign twins.

Source: Chao et al., arXiv 2404.01318; hub JailbreakBench/JBB-Behaviors, configuration behaviors
Licence: MIT
Revision: v1.0
Rows: 100 harmful, 100 benign, ten categories
Label: the harmful split is unsafe, the benign split safe; a benign behaviour shares the topic of a
    harmful one
Noise: a part of the harmful behaviours is taken over from AdvBench and HarmBench; some benign ones
    are policy-restricted advice
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    index = row["Index"]
    yield {
        "id": f"jailbreakbench-{row['split']}-{index}",
        "prompt": row["Goal"],
        "category": row["Category"],
        "source": row["Source"],
        "group": f"jailbreakbench-{index}",
    }


for _split, _label in (("harmful", "unsafe"), ("benign", "safe")):
    register(
        Benchmark(
            f"jailbreakbench_{_split}",
            __doc__ or "",
            rows=_rows,
            hub=(Hub("JailbreakBench/JBB-Behaviors", split=_split, config="behaviors"),),
            label=_label,
        )
    )
