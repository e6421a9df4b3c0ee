"""OR-Bench: seemingly toxic requests, hard set, and truly toxic ones.

Source: Cui et al., arXiv 2405.20947; hub bench-llm/or-bench, configurations or-bench-hard-1k and
    or-bench-toxic
Licence: CC-BY-4.0
Revision: newest
Rows: 1319 hard, 655 toxic, ten categories
Label: hard requests are safe (or_bench), toxic ones unsafe (or_bench_toxic)
Noise: written and filtered by models; people disagree on a part of the hard set
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, Hub, register

for _name, _config, _label in (
    ("or_bench", "or-bench-hard-1k", "safe"),
    ("or_bench_toxic", "or-bench-toxic", "unsafe"),
):
    register(
        Benchmark(
            _name, __doc__ or "", hub=(Hub("bench-llm/or-bench", config=_config),), label=_label
        )
    )
