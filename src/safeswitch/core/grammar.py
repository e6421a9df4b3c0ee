"""What users type in one word, each kind with one parser. Knows nothing of what it stands for.

    list      a,b,"c,d"                        entries behind commas; one that holds a comma stands
                                               in double quotes
    folder    folder  or  name=folder          a name is letters, digits, ``.``, ``_`` and ``-``
    judge     kind:where[,setting=value]...    where is a model, or MODEL@ADDRESS; the whole is a
                                               list
    method    gate[:file][+action[:file]]      ``+`` parts two methods only where a method's name
                                               follows it

What can be read in two ways is an error that names both.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safeswitch.core.errors import SettingError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SETTING = re.compile(r"([a-z_]+)=(.+)", re.DOTALL)
_AT_ADDRESS = re.compile(r"(.+?)@(https?://.+)", re.DOTALL)
DEFAULT = "default"


def entries(what: str, text: str) -> tuple[str, ...]:
    """The entries of a list, white space around them left out.

    Args:
        what: What is listed, for messages.
        text: As it was typed.

    Examples:
        >>> entries("--benchmarks", 'xstest, "a,b"')
        ('xstest', 'a,b')

    Raises:
        SettingError: no entry, an empty one, one twice, or a quote that is not closed.
    """
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise SettingError(
            f"{what}: {text!r} is no list: {error}; an entry with a comma stands in double quotes"
        ) from error
    found = tuple(entry.strip() for entry in rows[0]) if rows else ()
    twice = [entry for i, entry in enumerate(found) if entry in found[:i]]
    if not found or "" in found or twice:
        why = f"{twice[0]!r} comes twice" if twice else "an entry is empty"
        raise SettingError(f"{what}: {text!r}: {why}; give entries behind commas, each once")
    return found


def named_folders(what: str, texts: Sequence[str]) -> dict[str, str]:
    """Folders by name; the one without a name is called ``default``.

    Raises:
        SettingError: a name twice, or a text that is a folder here and also reads as a name and
            another folder.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, folder = _named(what, text)
        if name in found:
            raise SettingError(
                f"{what}: {found[name]!r} and {folder!r} are both called {name!r}; give each as "
                "name=folder"
            )
        found[name] = folder
    return found


def _named(what: str, text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not text.strip() or (equals and not (name and folder)):
        raise SettingError(
            f"{what}: {text!r} must be a folder, or name=folder with something on both sides"
        )
    if not equals or not _NAME.fullmatch(name):
        return DEFAULT, text
    if Path(text).exists():
        raise SettingError(
            f"{what}: {text!r} is a folder here, and also reads as the folder {folder!r} under the "
            f"name {name!r}; write {DEFAULT}={text} or ./{text} for the first, rename it for the "
            "second"
        )
    return name, folder


@dataclass(frozen=True)
class JudgeSpec:
    """A judge as it is named.

    Args:
        kind: In front of the colon.
        model: A model's name, folder or hub id; empty where nothing stands behind the colon.
        address: Of a server; empty where none is given.
        settings: By name.
    """

    kind: str
    model: str
    address: str
    settings: Mapping[str, str]


def judge_spec(text: str) -> JudgeSpec:
    """A judge's kind, model, address and settings.

    Examples:
        >>> judge = judge_spec("openai:small@https://example.org/v1,budget=5000")
        >>> judge.kind, judge.model, judge.address
        ('openai', 'small', 'https://example.org/v1')
        >>> judge.settings
        {'budget': '5000'}

    Raises:
        SettingError: an entry behind the first that is no ``setting=value``, a setting twice, or an
            ``@`` in the model's part that no address follows.
    """
    kind, _, rest = text.partition(":")
    where, *pairs = entries(f"judge {text!r}", rest) if rest else ("",)
    settings: dict[str, str] = {}
    for pair in pairs:
        match = _SETTING.fullmatch(pair)
        if match is None or match[1] in settings:
            raise SettingError(
                f"judge {text!r}: {pair!r} must be setting=value, each setting once; a name or "
                "path with a comma in it stands in double quotes"
            )
        settings[match[1]] = match[2]
    at = _AT_ADDRESS.fullmatch(where)
    return JudgeSpec(kind, at[1], at[2], settings) if at else JudgeSpec(kind, where, "", settings)


def method_parts(name: str, known: Container[str]) -> list[tuple[str, str | None]]:
    """The methods that a name joins, each with its file or None.

    Args:
        name: As it was typed.
        known: Names of methods; those that are joined are not checked against it.

    Examples:
        >>> method_parts("prober+merge:c++.safetensors", known={"prober", "merge"})
        [('prober', None), ('merge', 'c++.safetensors')]

    Raises:
        SettingError: a file whose name reads as a join as well.
    """
    first, plus, rest = _cut(name, known)
    found = [_kind_and_file(first)]
    return [*found, *method_parts(rest, known)] if plus else found


def _cut(name: str, known: Container[str]) -> tuple[str, str, str]:
    """The first method of a name and what follows it, as ``partition`` gives them."""
    head, colon, rest = name.partition(":")
    if not colon or "+" in head:
        return name.partition("+")
    for match in re.finditer(r"\+", rest):
        if rest[match.end() :].strip().partition(":")[0].partition("+")[0].strip() not in known:
            continue
        file, action = rest[: match.start()], rest[match.end() :]
        if Path(rest.strip()).exists():
            raise SettingError(
                f"method {name!r}: is {head.strip()} with the file {rest.strip()!r}, which is "
                f"there, or with {file.strip()!r} and the action {action.strip()!r}; rename the "
                "file"
            )
        return f"{head}:{file}", "+", action
    return name, "", ""


def _kind_and_file(part: str) -> tuple[str, str | None]:
    kind, colon, file = part.strip().partition(":")
    return kind, file if colon else None
