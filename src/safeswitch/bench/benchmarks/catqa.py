"""CatQA: categorical harmful questions in three languages.

Source: Bhardwaj et al., arXiv 2402.11746; hub declare-lab/CategoricalHarmfulQA, splits en, zh and
    vi
Licence: Apache-2.0
Revision: newest
Rows: 550 in each language, eleven categories of five subcategories
Label: every request is unsafe
Noise: machine-generated, translated by machine; the rules judge does not read Vietnamese
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {
        "prompt": row["Question"],
        "category": row["Category"],
        "subcategory": row.get("Subcategory"),
        "lang": row["split"],
    }


register(
    Benchmark(
        "catqa",
        __doc__ or "",
        rows=_rows,
        label="unsafe",
        hub=tuple(
            Hub("declare-lab/CategoricalHarmfulQA", split=language)
            for language in ("en", "zh", "vi")
        ),
    )
)
