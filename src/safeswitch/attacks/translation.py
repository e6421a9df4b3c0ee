"""The request in a language that the model's safety training saw less of, from translations that
the user has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from safeswitch.attacks.base import ATTACKS, Attack, Victim, attacked
from safeswitch.attacks.wrappers import last_turn
from safeswitch.core.errors import DataError
from safeswitch.core.types import Example
from safeswitch.data.files import csv_rows

Table = Mapping[str, Mapping[str, str]]
"""Text by language code, by the request's original words."""
MULTIJAIL = ("zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv")


@ATTACKS.add("translation")
@dataclass(frozen=True)
class Translation(Attack):
    """The request's translations (Yong et al. 2023, arXiv 2310.02446; Deng et al. 2023, MultiJail,
    arXiv 2310.06474).

    Nothing is translated here: :func:`read_columns` and :func:`parallel` make the table from rows.

    Args:
        table: Translations; a request that is not in it is left out.
    """

    table: Table = field(default_factory=dict)
    name: ClassVar[str] = "translation"
    paper: ClassVar[str] = "Deng et al. 2023, arXiv 2310.06474"

    def attack(self, example: Example, victim: Victim) -> list[Example]:
        texts = self.table.get(example.prompt, {})
        return [
            attacked(
                example, self, lang, meta={"lang": lang}, messages=last_turn(example.messages, text)
            )
            for lang, text in texts.items()
        ]


def read_columns(path: Path, languages: Sequence[str] = MULTIJAIL, original: str = "en") -> Table:
    """A CSV file with one column a language, named by its code, as MultiJail's.

    Raises:
        DataError: the file cannot be read, lacks a column, or translates one text in two ways.
    """
    table: dict[str, dict[str, str]] = {}
    for number, row in csv_rows(path):
        if isinstance(row, str):
            raise DataError(f"{path}, line {number}: {row}")
        missing = [name for name in (original, *languages) if name not in row]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(row)}"
            )
        translations = {lang: row[lang] for lang in languages if row[lang]}
        if table.setdefault(row[original], translations) != translations:
            raise DataError(
                f"{path}, line {number}: translates {row[original]!r:.60} a second time, into "
                "other words"
            )
    if not table:
        raise DataError(f"{path} holds no rows")
    return table


def parallel(examples: Iterable[Example], original: str = "en") -> Table:
    """Requests of one ``group`` are one request in the languages that ``meta["lang"]`` names.

    Raises:
        DataError: no group holds the ``original`` and another language.
    """
    groups: dict[str, dict[str, str]] = {}
    for example in examples:
        groups.setdefault(example.group, {})[example.meta.get("lang", "")] = example.prompt
    table: dict[str, dict[str, str]] = {}
    for group, texts in groups.items():
        if group and original in texts:
            others = {lang: text for lang, text in texts.items() if lang not in (original, "")}
            table[texts[original]] = others
    if not any(table.values()):
        raise DataError(
            f"no two rows of one group, one with lang={original!r} and one with another"
        )
    return table
