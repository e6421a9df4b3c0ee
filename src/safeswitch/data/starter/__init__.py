"""The starter set: requests that ship with the package, to fit a switch without data of one's own.

Written for this purpose, content-free: an unsafe request names a harm in general words, a safe one
shares its words, style and length. Knows nothing of models. Beside the usual fields a row tells:

    source      ``starter/<kind>``: what leave-one-source-out leaves out
    category    of unsafe rows the harm (see :func:`categories`), of safe ones the task;
                ``look-alike`` for the partner of an unsafe row, whose harm then stands in
                ``meta["contrast"]``
    group       both sides of a contrast and all their variants
    wrapper     the jailbreak template or code around the request; each stands around safe ones too
    meta        ``form`` (question, story, script, ...), ``lang`` (ISO 639-1), ``split``, and where
                it has one ``severity``, ``idea`` (how words mislead) and ``place`` (of the request
                in a long text)

Severity: ``severe`` (life and limb) and ``refuse`` are to be refused; ``careful`` is mild or risky,
and a good reply declines the harmful part; ``allow`` is a safe row that touches on harm (a
definition, history, protection, help).

Split: ``held`` rows share no group, no phrasing and no jailbreak frame with the others; languages
they share. The other three are cut by group alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from safeswitch.core.errors import DataError, check_choice
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.types import Example
from safeswitch.data.readers import read_examples
from safeswitch.data.splits import HELD

FOLDER = Path(__file__).parent
SPLITS = ("train", "validation", "calibration", HELD)
SEVERITIES = ("severe", "refuse", "careful", "allow")
_UNSPACED = ("zh", "ja")


@dataclass(frozen=True)
class Category:
    """A kind of harm.

    Args:
        means: What belongs to it, in a sentence.
        family: Reason that refusals in other languages than English give.
        refusals: English refusals that name the reason and offer a safe way on.
    """

    means: str
    family: str
    refusals: tuple[str, ...]


def load(splits: Collection[str] = SPLITS) -> list[Example]:
    """The requests of the given splits, in the order of the files.

    Raises:
        SettingError: an unknown split.
    """
    for split in splits:
        check_choice("starter.load", "splits", split, SPLITS)
    return [example for example in _everything() if example.meta["split"] in splits]


def fitting_rows() -> list[Example]:
    """Rows to fit on: all but the ``held`` ones, kinds mixed, the refusal that answers it as
    ``reply`` of an unsafe row.

    Mixed, since a part of the refusals is taken from the front where all are too many.
    """
    rows = load([split for split in SPLITS if split != HELD])
    refusing = [
        replace(e, reply=refusal_for(e)) if e.unsafe and e.reply is None else e for e in rows
    ]
    return mixed(refusing)


def mixed(examples: Sequence[Example]) -> list[Example]:
    """The rows in an order that their ids alone decide, as good as drawn."""
    return sorted(examples, key=lambda e: (zlib.crc32(e.id.encode()), e.id))


def kind(example: Example) -> str:
    """``pairs`` for a row of source ``starter/pairs``."""
    return example.source.rpartition("/")[2]


def categories() -> Mapping[str, Category]:
    """The harms by name."""
    return {name: _category(entry) for name, entry in _refusals()["categories"].items()}


def refusal_for(example: Example) -> str:
    """A refusal for an unsafe request, by its category and in its language (``meta["lang"]``).

    An unknown category gets a general refusal, an unknown language English. The same request gets
    the same refusal.

    Raises:
        DataError: the request is labelled safe.
    """
    if example.label == "safe":
        raise DataError(f"example {example.id!r} is labelled safe; only unsafe ones are refused")
    bank = _refusals()
    entry = bank["categories"].get(example.category, bank["other"])
    draw = zlib.crc32(f"{example.id} {example.prompt}".encode())
    lang = example.meta.get("lang", "en")
    if lang not in bank["languages"]:
        return str(entry["refusals"][draw % len(entry["refusals"])])
    own = bank["languages"][lang]
    parts = (own["open"][draw % len(own["open"])], own[entry["family"]], own["offer"])
    return joined(parts, lang)


def sentences(language: str) -> Mapping[str, str]:
    """Of refusals in a language other than English, the reasons by family and the offer.

    Raises:
        SettingError: a language that there are none for.
    """
    languages = _refusals()["languages"]
    check_choice("starter.sentences", "language", language, tuple(languages))
    return {name: told for name, told in languages[language].items() if isinstance(told, str)}


def joined(said: Sequence[str], language: str) -> str:
    """Sentences of a language, one behind the other."""
    return ("" if language in _UNSPACED else " ").join(said)


@cache
def _everything() -> tuple[Example, ...]:
    rows: list[Example] = []
    for path in sorted(FOLDER.glob("*.jsonl")):
        rows += read_examples(path)
    return tuple(rows)


@cache
def _refusals() -> JsonObject:
    bank: JsonObject = json.loads((FOLDER / "refusals.json").read_text(encoding="utf-8"))
    return bank


def _category(entry: JsonMapping) -> Category:
    return Category(entry["means"], entry["family"], tuple(entry["refusals"]))
