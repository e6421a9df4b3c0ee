"""Rows of JSONL and CSV files, each with its line; what cannot be read comes as the text of its
fault.

Knows file formats, and nothing of the schema. A fault of one row does not hide the others; one
behind which rows cannot be told apart any more (a quote that is never closed) ends the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from safeswitch.core.errors import DataError
from safeswitch.core.json_types import JsonMapping
from safeswitch.core.strict_json import parse_json

Row = tuple[int, JsonMapping | str]
"""Line, and field to value, or what is wrong with the row."""

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Line by line, blank ones left out.

    Raises:
        DataError: the file cannot be opened.
    """
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, _json_row(line)


def _json_row(line: str) -> JsonMapping | str:
    if fault := _fault_of_text(line):
        return fault
    try:
        value = parse_json(line)
    except DataError as error:
        return str(error)
    return value if isinstance(value, dict) else f"must be an object; got {type(value).__name__}"


def csv_rows(path: Path) -> Iterator[Row]:
    """Cells by the names of the header, each row with the line on which it ends.

    Raises:
        DataError: the file cannot be opened, or its header leaves open which column is which.
    """
    reader = csv.reader(_lines(path), strict=True)
    names: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield first, _fault_of_csv(error)
            return
        if cells is None:
            return
        if not cells:
            continue
        if names is None:
            names = cells
            check_header(path, names)
            continue
        yield reader.line_num, _csv_row(names, cells)


def _csv_row(names: Sequence[str], cells: Sequence[str]) -> JsonMapping | str:
    if len(cells) != len(names):
        return (
            f"has {len(cells)} cells, but the header names {len(names)} columns; text with commas "
            "needs quotes"
        )
    for name, cell in zip(names, cells, strict=True):
        if fault := _fault_of_text(cell):
            return f"field {name!r}: {fault}"
    return dict(zip(names, cells, strict=True))


def check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a header from which it cannot be said which column is which.

    Raises:
        DataError: names twice, empty, with white space around them, not in UTF-8, or parted by
            something else than commas.
    """
    fault = _fault_of_header(names)
    if fault:
        raise DataError(f"{path}, line 1: {fault}")


def _fault_of_header(names: Sequence[str]) -> str:
    for i, name in enumerate(names, 1):
        if fault := _fault_of_text(name):
            return f"column {i} of the header: {fault}"
        if not name.strip():
            return f"column {i} of the header has no name; give it one, or take the column out"
        if name != name.strip():
            return (
                f"column {i} of the header is {name!r}, with white space around it; write "
                f"{name.strip()!r}"
            )
        if name in names[: i - 1]:
            return f"the header names {name!r} twice; each column needs a name of its own"
    other = [
        words for mark, words in _OTHER_SEPARATORS.items() if len(names) == 1 and mark in names[0]
    ]
    return (
        f"the header is one column, {names[0]!r}, with {other[0]} in it; cells must be parted by "
        "commas"
        if other
        else ""
    )


def _lines(path: Path) -> Iterator[str]:
    """The lines as they stand, without a byte order mark; a byte that is no UTF-8 comes as a lone
    surrogate.

    Raises:
        DataError: the file cannot be opened, or is UTF-16.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(2) in _UTF16:
                raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            yield from lines
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _fault_of_text(text: str) -> str:
    """Why a text of the file cannot be taken, empty where it can; to be asked before escapes are
    read."""
    if found := _NOT_UTF8.search(text):
        byte = ord(found.group()) - 0xDC00
        return (
            f"byte 0x{byte:02x} at character {found.start() + 1} is not UTF-8; save the file as "
            "UTF-8"
        )
    if "\0" in text:
        return f"character {text.index(chr(0)) + 1} is NUL (U+0000), which no text may hold"
    return ""


def _fault_of_csv(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "a quote is opened in the row that begins here and is never closed"
    if "field limit" in str(error):
        most = csv.field_size_limit()
        return (
            f"a cell has more than {most:,} characters; close its quote if that is missing, or "
            "write the file as JSONL"
        )
    return f"not valid CSV: {error}"
