"""SORRY-Bench: fine-grained unsafe requests, plain and in linguistic mutations.

Source: Xie et al., arXiv 2406.14598; hub sorry-bench/sorry-bench-202503 (gated)
Licence: the authors' own agreement, research use
Revision: 2025/03 (44 categories, 440 base requests); the first release had 45 categories and 450
Rows: 440 base; 20 mutations of each (styles, persuasion, encodings, languages)
Label: every request is unsafe; the style is the jailbreak template; translated and encoded styles
    are marked as such, and only replies that answer the request's substance count for the authors'
    judge
Noise: several categories are policy matters (unqualified advice, political belief) where answering
    may be right; the rules judge reads neither ciphers nor the five other languages, so encoded
    styles need a model as judge
"""

from __future__ import annotations

from collections.abc import Iterator

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping, JsonObject

_LANGUAGES = {
    "translate-fr": "fr",
    "translate-ml": "ml",
    "translate-mr": "mr",
    "translate-ta": "ta",
    "translate-zh-cn": "zh",
}
_HUB = (Hub("sorry-bench/sorry-bench-202503"),)


def _row(row: JsonMapping) -> JsonObject:
    style = str(row.get("prompt_style") or "base")
    turns = row["turns"]
    return {
        "id": f"sorry_bench-{style}-{row['question_id']}",
        "prompt": turns[0] if isinstance(turns, list) else turns,
        "category": str(row["category"]),
        "wrapper": "" if style == "base" else style,
        "group": f"sorry_bench-{row['question_id']}",
        "lang": _LANGUAGES.get(style, "en"),
    }


def _base(row: JsonMapping) -> Iterator[JsonMapping]:
    if row.get("prompt_style", "base") == "base":
        yield _row(row)


def _mutations(row: JsonMapping) -> Iterator[JsonMapping]:
    if row.get("prompt_style", "base") != "base":
        yield _row(row)


register(Benchmark("sorry_bench", __doc__ or "", rows=_base, hub=_HUB, label="unsafe"))
register(
    Benchmark("sorry_bench_mutations", __doc__ or "", rows=_mutations, hub=_HUB, label="unsafe")
)
