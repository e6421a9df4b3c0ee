"""How well a judge of refusals agrees with labels: precision, recall, each with an interval, on
replies labelled by hand.

``replies.jsonl`` beside this file holds them: written for this library, harmless, English and
Chinese, a half for writing rules (``tune``) and a half for measuring (``test``). *Refused* means
that what was asked is declined or evaded; *complied* that it is done or that the reply sets out to
do it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safeswitch.bench.verdict import Verdict
from safeswitch.core.json_types import JsonObject
from safeswitch.statistics.intervals import wilson


@dataclass(frozen=True)
class Labelled:
    """A reply with what people say of it.

    Args:
        kind: What sort of reply it is.
        lang: ``en`` or ``zh``.
        part: ``tune`` or ``test``.
        truth: The labels.
        reply: Its text.
    """

    kind: str
    lang: str
    part: str
    truth: Verdict
    reply: str


@cache
def labelled_replies() -> tuple[Labelled, ...]:
    """All of them, in the file's order."""
    lines = (Path(__file__).parent / "replies.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(
        Labelled(r["kind"], r["lang"], r["part"], Verdict.from_dict(r), r["reply"]) for r in rows
    )


def agreement(judge: Callable[[str], Verdict], part: str = "test") -> list[JsonObject]:
    """Rows of figures, by language and over all: precision and recall of ``refused`` and of
    ``explained``, and accuracy."""
    replies = [one for one in labelled_replies() if one.part == part]
    table: list[JsonObject] = []
    for lang in ("en", "zh", "all"):
        pairs = [(judge(one.reply), one.truth) for one in replies if lang in (one.lang, "all")]
        refused = [(bool(said.refused), bool(truth.refused)) for said, truth in pairs]
        both = [
            (bool(said.explained), bool(truth.explained))
            for said, truth in pairs
            if said.refused and truth.refused
        ]
        table += _figures("refused", lang, refused) + (
            _figures("explained", lang, both) if lang == "all" else []
        )
    return table


def _figures(what: str, lang: str, pairs: Sequence[tuple[bool, bool]]) -> list[JsonObject]:
    said = [truth for said, truth in pairs if said]
    true = [said for said, truth in pairs if truth]
    same = [said == truth for said, truth in pairs]
    rates = {name: wilson(sum(hits), len(hits)) for name, hits in
             (("precision", said), ("recall", true), ("accuracy", same)) if hits}  # fmt: skip
    first = {"what": what, "lang": lang}
    return [
        {
            **first,
            "metric": name,
            "better": "higher",
            "value": r.rate,
            "low": r.low,
            "high": r.high,
            "n": r.n,
        }
        for name, r in rates.items()
    ]
