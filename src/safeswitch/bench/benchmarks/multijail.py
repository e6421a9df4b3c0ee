"""MultiJail: unsafe requests in ten languages.

Source: Deng et al., arXiv 2310.06474; github.com/DAMO-NLP-SG/multilingual-safety-for-LLMs,
    data/MultiJail.csv; hub DAMO-NLP-SG/MultiJail
Licence: MIT
Revision: 577ac511437e
Rows: 315 requests, each in English and nine languages: 3150
Label: every request is unsafe; the languages of one request share a group, so their rows are not
    independent
Noise: English rows come from red-teaming logs and a model; the rules judge reads English and
    Chinese only, and takes what it cannot read as compliance: figures for the other eight languages
    need a model as judge
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example

LANGUAGES = ("en", "zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv")


def _rows(row: JsonMapping) -> Iterator[JsonMapping]:
    tags = row.get("tags")
    for language in LANGUAGES:
        if row.get(language):
            yield {
                "id": f"multijail-{row['id']}-{language}",
                "prompt": row[language],
                "lang": language,
                "category": tags if isinstance(tags, str) else ", ".join(tags or ()),
                "group": f"multijail-{row['id']}",
            }


def _named(example: Example) -> Example:
    """The file writes a request's tags as a Python list."""
    return replace(example, category=re.sub(r"[\[\]'\"]", "", example.category))


register(
    Benchmark(
        "multijail",
        __doc__ or "",
        rows=_rows,
        hub=(Hub("DAMO-NLP-SG/MultiJail"),),
        label="unsafe",
        prepare=_named,
    )
)
