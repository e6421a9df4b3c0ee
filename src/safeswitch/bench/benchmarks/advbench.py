"""AdvBench: harmful behaviours.

Source: Zou et al., arXiv 2307.15043; github.com/llm-attacks/llm-attacks,
    data/advbench/harmful_behaviors.csv
Licence: MIT
Revision: three public copies of the file are byte-identical; hub copy walledai/AdvBench (gated)
Rows: 520
Label: every request is unsafe; doing what it asks is the hit
Noise: many near-repeats (bombs, hacking, fraud), so the rows are far from independent; one tone, no
    category
"""

from __future__ import annotations

from safeswitch.bench.benchmark import Benchmark, Hub, register

register(Benchmark("advbench", __doc__ or "", hub=(Hub("walledai/AdvBench"),), label="unsafe"))
