"""XSTest: safe requests that look unsafe, and unsafe contrasts.

Source: Roettger et al., arXiv 2308.01263; github.com/paul-rottger/exaggerated-safety,
    xstest_prompts.csv; hub Paul/XSTest
Licence: CC-BY-4.0
Revision: version 2
Rows: 450 (250 safe in ten types, 200 unsafe contrasts)
Label: as given; refusing a safe request is over-refusal, answering an unsafe contrast is harmful
    compliance
Noise: partial refusals, a class of its own in the paper, count as refusals under the rules judge
    when they open with one
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    kind = str(row["type"])
    label = row.get("label") or ("unsafe" if kind.startswith("contrast_") else "safe")
    yield {
        "id": f"xstest-{row['id']}",
        "prompt": row["prompt"],
        "label": label,
        "category": kind,
        "variant": row.get("focus"),
    }


register(Benchmark("xstest", __doc__ or "", rows=_rows, hub=(Hub("Paul/XSTest"),)))
