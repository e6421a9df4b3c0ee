"""What a switch decided on recorded traffic, one row for each text that it would have flagged.

Scores of another switch, or under other thresholds, cannot be compared with this one's: records of
these are left out and counted, never guessed at. Knows records as plain mappings. Knows nothing of
databases, verdicts and models.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping, JsonObject

SCORED = ("observe", "enforce")
"""Policies under which a gate reads and decides."""
FRONT = ("stage1", "stage2", "product")
"""Thresholds that a request passes before its reply begins, in the order of asking."""
_CLOSE = 1e-9


@dataclass(frozen=True)
class FlaggedText:
    """A text that the switch fired on, as often as it was sent.

    Args:
        text_sha256: Of the templated prompt; what a verdict names.
        text: The prompt; None where the audit keeps hashes alone.
        stage: The stage that decided.
        scores: By stage, of the record that lies highest.
        margin: How far the score that came nearest lies above its threshold.
        times: Records.
        last: When it came last, Unix seconds.
        request_id: Of that record.
    """

    text_sha256: str
    text: str | None
    stage: str
    scores: Mapping[str, float]
    margin: float
    times: int
    last: float
    request_id: str

    def to_dict(self) -> JsonObject:
        """Plain JSON types."""
        return {**self.__dict__, "scores": dict(self.scores)}

    def at(self, stage: str) -> float:
        """The score that a threshold of ``stage`` must reach to let it pass; infinite where that
        stage did not decide (watch, late, a prefilled reply)."""
        return self.scores.get(stage, math.inf) if self.stage in FRONT else math.inf


@dataclass(frozen=True)
class Traffic:
    """Recorded decisions of one switch under its own thresholds.

    Args:
        requests: Records that count.
        flagged: Texts that the switch fired on, nearest to the threshold first.
        passed: Scores by stage of each record that it did not fire on.
        first: When the first record that counts was written, Unix seconds.
        last: When the last was.
        left: Records that do not count, by reason.
    """

    requests: int
    flagged: tuple[FlaggedText, ...]
    passed: tuple[Mapping[str, float], ...]
    first: float
    last: float
    left: Mapping[str, int] = field(default_factory=dict)

    @property
    def days(self) -> float:
        """Time from the first record to the last."""
        return (self.last - self.first) / 86400


def traffic(
    records: Iterable[JsonMapping], switch_id: str, thresholds: Mapping[str, float]
) -> Traffic:
    """Sort recorded decisions.

    Args:
        records: As ``safeswitch audit export`` gives them.
        switch_id: Fingerprint of the switch whose decisions count.
        thresholds: Its own, by stage.

    Raises:
        DataError: no record counts (the message says why), or one that is damaged.
    """
    found: dict[str, FlaggedText] = {}
    passed: list[Mapping[str, float]] = []
    times: list[float] = []
    left: Counter[str] = Counter()
    for record in records:
        why = _left_out(record, switch_id, thresholds)
        if why:
            left[why] += 1
            continue
        times.append(float(record["at"]))
        scores = with_product(numbers(record, "scores"), thresholds)
        if not record["fired"]:
            passed.append(scores)
            continue
        one = _flagged(record, scores, thresholds)
        found[one.text_sha256] = _joined(found.get(one.text_sha256), one)
    if not times:
        reasons = ", ".join(f"{why}: {count}" for why, count in left.items()) or "there are none"
        raise DataError(
            f"no recorded decision of switch {switch_id} can be used ({reasons}); serve it with "
            "--policy observe --audit-text"
        )
    nearest = sorted(found.values(), key=lambda one: (one.margin, one.text_sha256))
    return Traffic(len(times), tuple(nearest), tuple(passed), min(times), max(times), dict(left))


def _left_out(record: JsonMapping, switch_id: str, thresholds: Mapping[str, float]) -> str:
    """Why a record does not count, empty where it does."""
    if record.get("policy") not in SCORED:
        return "not scored (policy off)"
    if record.get("bundle_id") != switch_id:
        return "decided by another switch"
    if record.get("error"):
        return "could not be scored"
    own = numbers(record, "thresholds")
    same = own.keys() == thresholds.keys() and all(
        math.isclose(own[name], value, abs_tol=_CLOSE) for name, value in thresholds.items()
    )
    return "" if same else "decided under other thresholds"


def with_product(scores: Mapping[str, float], thresholds: Mapping[str, float]) -> dict[str, float]:
    """The product beside its factors, under the product rule. Where stage 2 was not asked, stage 1
    alone: the product can be no higher."""
    if "product" in thresholds and "stage1" in scores:
        return {**scores, "product": scores["stage1"] * scores.get("stage2", 1.0)}
    return dict(scores)


def _flagged(
    record: JsonMapping, scores: Mapping[str, float], thresholds: Mapping[str, float]
) -> FlaggedText:
    stage = str(record["stage"])
    deciding = [name for name in thresholds if name in FRONT] if stage in FRONT else [stage]
    margins = [scores[name] - thresholds[name] for name in deciding if name in scores]
    if not margins:
        raise DataError(
            f"record {record.get('request_id')!r} fired at {stage!r} without a score that a "
            f"threshold ({', '.join(thresholds) or 'none'}) was held against"
        )
    text = record.get("text")
    return FlaggedText(
        str(record["text_sha256"]),
        text if isinstance(text, str) else None,
        stage,
        scores,
        min(margins),
        1,
        float(record["at"]),
        str(record["request_id"]),
    )


def _joined(known: FlaggedText | None, one: FlaggedText) -> FlaggedText:
    """Two records of one text: the higher one stands for both, since it is the last to pass."""
    if known is None:
        return one
    higher = max(known, one, key=lambda flagged: flagged.margin)
    later = max(known, one, key=lambda flagged: flagged.last)
    return replace(
        higher,
        text=higher.text or known.text or one.text,
        times=known.times + one.times,
        last=later.last,
        request_id=later.request_id,
    )


def numbers(record: JsonMapping, name: str) -> dict[str, float]:
    """A field of numbers by stage, which the database holds as JSON text.

    Raises:
        DataError: it holds something else.
    """
    value = record.get(name) or {}
    try:
        found = json.loads(value) if isinstance(value, str) else value
        return {str(stage): float(number) for stage, number in found.items() if number is not None}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"record {record.get('request_id')!r}: field {name!r} is not numbers by stage: {error}"
        ) from error
