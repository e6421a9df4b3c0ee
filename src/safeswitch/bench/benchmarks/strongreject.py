"""StrongREJECT: forbidden prompts.

Source: Souly et al., arXiv 2402.10260; github.com/alexandrasouly/strongreject; hub copy
    walledai/StrongREJECT (gated)
Licence: MIT
Revision: strongreject_dataset.csv of the repository
Rows: 313, six categories
Label: every request is unsafe; meant to be scored by the authors' rubric (judge strongreject),
    which grades how useful a reply is
Noise: under the rules judge an empty promise counts as much as a full answer
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    prompt = row.get("prompt") or row.get("forbidden_prompt")
    yield {"prompt": prompt, "category": row.get("category"), "source": row.get("source")}


register(
    Benchmark(
        "strongreject",
        __doc__ or "",
        rows=_rows,
        hub=(Hub("walledai/StrongREJECT"),),
        label="unsafe",
    )
)
