"""Verdicts of people on requests that a switch has flagged: a JSONL file, added to and never
rewritten.

A row names the request by the hash of its text, so the file holds nothing that users wrote. Knows
nothing of databases, scores and models.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safeswitch.core.errors import ArtifactError, DataError, SafeSwitchError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.lines import append, cut_torn_line, whole_lines
from safeswitch.core.lock import file_writer
from safeswitch.core.strict import build, one_line, shown
from safeswitch.core.strict_json import parse_json

ReviewVerdict = Literal["right", "false_alarm", "unsure"]
VERDICTS: tuple[ReviewVerdict, ...] = ("right", "false_alarm", "unsure")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 128


@dataclass(frozen=True)
class Review:
    """One verdict.

    Args:
        text_sha256: Of the request's text, as the audit has it.
        verdict: ``right`` (it should be flagged), ``false_alarm`` or ``unsure``.
        by: Who says so.
        at: When, Unix seconds.
        switch: Fingerprint of the switch that flagged it.
    """

    text_sha256: str
    verdict: ReviewVerdict
    by: str
    at: float
    switch: str

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.text_sha256):
            raise DataError(
                f"review: text_sha256 must be 64 lower-case hex digits; got "
                f"{shown(self.text_sha256)}"
            )
        if not self.by.strip() or len(self.by) > _LONGEST_NAME or one_line(self.by) != self.by:
            raise DataError(
                f"review: by must be a name of one line, up to {_LONGEST_NAME} characters; got "
                f"{shown(self.by)}"
            )


def read_reviews(path: Path) -> list[Review]:
    """All verdicts of a file, oldest first; a half-written last line does not count.

    Raises:
        ArtifactError: it cannot be read.
        DataError: a line that is no verdict, by its number.
    """
    try:
        lines = whole_lines(path)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    return [_review(line, f"{path}, line {i}", {}) for i, line in enumerate(lines, 1) if line]


def import_reviews(path: Path, absent: JsonMapping, known: Iterable[str]) -> list[Review]:
    """Verdicts that were given elsewhere.

    Args:
        path: JSONL; ``text_sha256`` and ``verdict`` are needed, the other fields of a verdict may
            be absent.
        absent: What stands in for those.
        known: Hashes of the texts that were flagged; others are refused.

    Raises:
        ArtifactError: it cannot be read.
        DataError: a line that is no verdict, or on another text or switch.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error
    found, texts = [], set(known)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        review = _review(line, where, absent)
        if review.text_sha256 not in texts:
            raise DataError(
                f"{where}: no request with text_sha256 {review.text_sha256} was flagged by switch "
                f"{absent['switch']}"
            )
        if review.switch != absent["switch"]:
            raise DataError(
                f"{where}: a verdict on what switch {shown(review.switch)} flagged; this one is "
                f"{absent['switch']}"
            )
        found.append(review)
    return found


def _review(line: bytes, where: str, absent: JsonMapping) -> Review:
    try:
        row = parse_json(line.decode())
        return build(Review, {**absent, **row} if isinstance(row, dict) else row, "review")
    except (SafeSwitchError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {error}") from error


def add_reviews(path: Path, reviews: Sequence[Review], *, wait_s: float = 0.0) -> None:
    """Add verdicts to a file, as its only writer meanwhile, and wait until they are on disk; half a
    line that an interrupted writer left is cut off first.

    Raises:
        ArtifactError: it cannot be written, or another writer has it for longer than ``wait_s``.
    """
    with file_writer(path, wait_s=wait_s):
        if path.exists():
            cut_torn_line(path)
        append(path, [asdict(review) for review in reviews])


def settled(reviews: Iterable[Review], switch: str) -> dict[str, ReviewVerdict]:
    """What the reviewers say in the end, by text.

    Each reviewer's last word counts. Reviewers who contradict one another leave a text unsure: one
    wrong or hostile reviewer then cannot overrule another.

    Args:
        reviews: In any order.
        switch: Fingerprint; verdicts on what others flagged do not count.
    """
    last: dict[str, dict[str, Review]] = defaultdict(dict)
    for review in sorted(reviews, key=lambda one: one.at):
        if review.switch == switch:
            last[review.text_sha256][review.by] = review
    found: dict[str, ReviewVerdict] = {}
    for text, own in last.items():
        said = {review.verdict for review in own.values()}
        found[text] = said.pop() if len(said) == 1 else "unsure"
    return found


def by_reviewer(reviews: Iterable[Review]) -> dict[str, dict[str, int]]:
    """How often each reviewer said what."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for review in reviews:
        found[review.by][review.verdict] += 1
    return {name: dict(found[name]) for name in sorted(found)}


def reviews_hash(reviews: Iterable[Review]) -> str:
    """SHA-256 (first 16 hex digits) of a set of verdicts; their order does not count."""
    lines = sorted(repr(sorted(asdict(review).items())) for review in reviews)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def counts(verdicts: Mapping[str, ReviewVerdict]) -> dict[str, int]:
    """Texts by verdict, each verdict named."""
    found = Counter(verdicts.values())
    return {verdict: found[verdict] for verdict in VERDICTS}
