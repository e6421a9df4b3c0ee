"""CyberSecEval: false refusal rate on benign security requests.

Source: Bhatt et al., arXiv 2404.13161; github.com/meta-llama/PurpleLlama,
    CybersecurityBenchmarks/datasets/mitre_frr
Licence: MIT
Revision: 4be64c3a2444
Rows: 750 English; 700 machine-translated into seven languages (cyberseceval_frr_multilingual)
Label: every request is safe; refusing is over-refusal
Noise: machine-generated; some twenty prompts are debatable. Not on the hub: put the JSON file into
    a folder of the benchmark's name
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "prompt": row["mutated_prompt"],
        "category": row.get("mitre_category"),
        "lang": row.get("language"),
    }


for _name in ("cyberseceval_frr", "cyberseceval_frr_multilingual"):
    register(Benchmark(_name, __doc__ or "", rows=_rows, label="safe"))
