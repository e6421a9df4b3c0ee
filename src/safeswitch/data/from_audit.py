"""Real traffic as safe rows: what a server recorded while it only observed.

A request counts as safe because nothing spoke against it, not because somebody looked at it. So
what the gate would have fired on, what it could not score, and the requests nearest to the
threshold are not taken for safe: they go apart, without a label, for a person to decide. Knows
records as plain mappings. Knows nothing of databases and models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from safeswitch.core.errors import DataError, check_range
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.types import Example, Message
from safeswitch.data.traffic import numbers, with_product

SplitTurns = Callable[[str], Sequence[Message] | None]
"""The turns of a prompt's text, None where they cannot be told."""

STAGES = ("stage1", "product", "stage2")
"""Scores by which a request can be near the threshold, the one that most requests have first."""


@dataclass(frozen=True)
class FromAudit:
    """Recorded requests, each text once.

    Args:
        safe: Labelled ``safe``.
        review: Without a label, so that no fit takes them before a person has given one;
            ``meta`` says why each is here. What fired comes first, then what came near.
        left: Records of which no row could be made, by reason.
    """

    safe: tuple[Example, ...]
    review: tuple[Example, ...]
    left: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """One text, by the record of it that speaks most against it."""

    name: str
    text: str
    messages: tuple[Message, ...]
    why: str
    above: float | None

    @property
    def rank(self) -> float:
        if self.why or self.above is None:
            return math.inf
        return self.above


def from_audit(
    records: Iterable[JsonMapping], turns: SplitTurns, *, review: float = 0.05
) -> FromAudit:
    """Rows for ``fit --data`` from records of a server in observe mode.

    Args:
        records: As ``safeswitch audit export`` gives them, with their text.
        turns: Takes a text apart.
        review: Fraction of the requests that did not fire which are put aside, those whose
            scores are nearest to their threshold; 0 puts aside nothing but what fired or could
            not be scored.

    Raises:
        SettingError: ``review`` outside 0 to 1.
        DataError: no record has a text that can be used; the message counts the reasons.
    """
    check_range("from_audit", "review", review, 0.0, 1.0)
    seen: dict[str, _Seen] = {}
    left: Counter[str] = Counter()
    for record in records:
        one = _read(record, turns, left)
        if one is None:
            continue
        known = seen.get(one.text)
        if known is None or one.rank > known.rank:
            seen[one.text] = one
        if known is not None:
            left["repeated"] += 1
    if not seen:
        why = (
            ", ".join(f"{reason}: {count}" for reason, count in left.items())
            or "there are no records"
        )
        raise DataError(
            f"no recorded request can be used ({why}); serve with --policy observe --audit-text"
        )
    return _parted(list(seen.values()), review, left)


def _parted(seen: Sequence[_Seen], review: float, left: Mapping[str, int]) -> FromAudit:
    aside = [one for one in seen if one.why]
    quiet = sorted((one for one in seen if not one.why), key=lambda one: one.rank, reverse=True)
    near = math.ceil(review * len(quiet))
    put_aside = [_row(one, one.why) for one in aside] + [
        _row(one, "near the threshold") for one in quiet[:near]
    ]
    taken = {one.text for one in quiet[near:]}
    return FromAudit(
        tuple(_row(one) for one in seen if one.text in taken), tuple(put_aside), dict(left)
    )


def _row(one: _Seen, why: str = "") -> Example:
    meta = (
        {"why": why, "above": "unknown" if one.above is None else f"{one.above:.4f}"} if why else {}
    )
    return Example(one.name, one.messages, "" if why else "safe", source="audit", meta=meta)


def _read(record: JsonMapping, turns: SplitTurns, left: Counter[str]) -> _Seen | None:
    """What a record says of a request; None, with the reason counted, where it gives no row."""
    text = record.get("text")
    if record.get("policy") != "observe":
        left["not observed, but enforced or off"] += 1
        return None
    if not isinstance(text, str) or not text.strip():
        left["without text"] += 1
        return None
    messages = turns(text)
    if messages is None:
        left["turns cannot be told"] += 1
        return None
    above = _above(record)
    why = (
        "fired"
        if record.get("fired")
        else "could not be scored"
        if record.get("error") or above is None
        else ""
    )
    name = f"{record.get('request_id', 'request')}-{record.get('choice', 0)}"
    return _Seen(name, text, tuple(messages), why, above)


def _above(record: JsonMapping) -> float | None:
    """How far the score lies above its threshold, negative below; None without a score."""
    thresholds = numbers(record, "thresholds")
    scores = with_product(numbers(record, "scores"), thresholds)
    for stage in STAGES:
        if stage in thresholds and math.isfinite(scores.get(stage, math.nan)):
            return scores[stage] - thresholds[stage]
    return None
