"""TrustLLM: misuse and jailbreak.

Source: Huang et al., arXiv 2401.05561; github.com/HowieHwong/TrustLLM; hub
    TrustLLM/TrustLLM-dataset, configuration safety
Licence: MIT for the code; the parts of misuse have licences of their own
Revision: dataset.zip of the repository
Rows: misuse 1174, jailbreak 1398 (13 kinds of template)
Label: every request is unsafe; SafeSwitch's column "TrustLLM" is 0.45 misuse + 0.55 jailbreak
    (arXiv 2502.01042), and is given as the benchmark trustllm where both were run
Noise: a third of misuse are questions of "Do Anything Now" whose legal, financial, health and
    lobbying classes are restricted by policy rather than harmful; templates and queries of
    jailbreak recur
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from safeswitch.bench.benchmark import Benchmark, Hub, register
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example


def _misuse(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {"prompt": row["prompt"], "category": row.get("category"), "source": row.get("source")}


def _jailbreak(row: JsonMapping) -> Iterator[JsonMapping]:
    yield {"prompt": row["prompt"], "wrapper": _text(row.get("label")), "source": row.get("source")}


def _text(value: object) -> str:
    """A jailbreak template's name, which the file writes as a list of one."""
    return str(value[0] if isinstance(value, list) and value else value or "").strip("[]'\"")


def _wrapped(example: Example) -> Example:
    """A local file keeps the template in its category."""
    return (
        example
        if example.wrapper
        else replace(example, wrapper=_text(example.category), category="")
    )


for _part, _rows, _prepare in (("misuse", _misuse, None), ("jailbreak", _jailbreak, _wrapped)):
    register(
        Benchmark(
            f"trustllm_{_part}",
            __doc__ or "",
            rows=_rows,
            hub=(Hub("TrustLLM/TrustLLM-dataset", split=_part, config="safety"),),
            label="unsafe",
            prepare=_prepare or (lambda example: example),
        )
    )
