"""``--config file.yaml``: the options of a command in a file, and such a file left in a run folder.

The keys are the names of the options without the dashes in front, and for an argument its name. The
command line wins over the file.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
import yaml

from safeswitch._version import __version__
from safeswitch.cli.screen import say
from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject

_REST = "safeswitch.config.rest"
_WORDS = {
    str: "a text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
RENAMED = {"reply-tokens": "max-new-tokens"}
"""Options that had another name once, without the dashes in front: old name to new."""
_TAKEN: dict[type, tuple[type, ...]] = {
    str: (str,),
    Path: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
}
"""What YAML may give for an option, by the option's type."""


def plain_type(hint: object) -> tuple[type, bool]:
    """The type of one value of an option, and whether the option takes a list of them."""
    if get_origin(hint) is Annotated:
        return plain_type(get_args(hint)[0])
    inner = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is list:
        return inner[0], True
    if inner:
        return plain_type(inner[0])
    assert isinstance(hint, type)
    return hint, False


def _apply(ctx: typer.Context, param: typer.CallbackParam, file: Path | None) -> None:
    """Take the options of ``file`` as the defaults of the command that is being parsed.

    Raises:
        SettingError: no readable mapping, an unknown key, or a value of another type.
    """
    if file is None or ctx.resilient_parsing:
        return
    known = option_keys(ctx.command.params)
    given: dict[str, object] = {}
    for key, value in _read(file).items():
        new = newest_name(key, known)
        if new in given:
            raise SettingError(f"{file}: {key!r} gives {new!r} a second time; leave one out")
        given[new] = value
    more = {key: value for key, value in given.items() if key not in known}
    if more and not ctx.allow_extra_args:
        refuse_unknown(file, more, known)
    ctx.meta[_REST] = (file, more)
    types = inspect.signature(ctx.command.callback).parameters  # type: ignore[arg-type]
    ctx.default_map = {}
    for key, value in given.items():
        if key not in known:
            continue
        option = known[key]
        _check_type(f"{file}: {key}", value, types[option.name].annotation)
        try:
            option.process_value(ctx, value)
        except typer.BadParameter as error:
            raise SettingError(f"{file}: {key}: {error.message}") from error
        ctx.default_map[option.name] = value


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_apply,
        metavar="FILE",
        help="YAML file with options as its keys; the command line wins over it.",
    ),
]


def option_keys(params: Iterable[Any]) -> JsonObject:
    """Options and arguments of a command, by the key that a file has."""
    found = {}
    for param in params:
        if param.name != "config":
            found[_key_of(param)] = param
    return found


def newest_name(name: str, known: Collection[str]) -> str:
    """What an option is called now; an old name is pointed out on standard error.

    Args:
        name: As it was given, without dashes in front.
        known: Names that the command takes.
    """
    new = RENAMED.get(name, name)
    if name in known or new not in known:
        return name
    if new != name:
        say(f"note: {name} is called {new} now")
    return new


def _key_of(param: Any) -> str:
    """An option's name without the dashes in front; an argument's name."""
    longest = max(param.opts, key=len)
    return str(longest).lstrip("-").replace("_", "-")


def refuse_unknown(file: Path, given: Mapping[str, object], known: Collection[str]) -> None:
    """Raise :class:`SettingError` for the first key of ``given`` that is not known."""
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            allowed = ", ".join(sorted(known))
            raise SettingError(f"{file}: unknown key {key!r}{meant}; allowed: {allowed}")


def rest_of_config(ctx: typer.Context) -> tuple[Path | None, dict[str, object]]:
    """The file that ``--config`` named, and those of its keys that are no options of the command.

    Only a command that passes flags on to another program may have such keys.
    """
    found: tuple[Path | None, dict[str, object]] = ctx.meta.get(_REST, (None, {}))
    return found


def flags_of(given: Mapping[str, object]) -> list[str]:
    """Keys and values of a file as the flags of another program; what is nested becomes JSON."""
    flags = []
    for key, value in given.items():
        if isinstance(value, bool):
            flags.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, list):
            flags += [f"--{key}", *(str(one) for one in value)]
        elif isinstance(value, dict):
            flags += [f"--{key}", json.dumps(value)]
        else:
            flags += [f"--{key}", str(value)]
    return flags


def write_config(ctx: typer.Context, folder: Path) -> None:
    """Write the options that the command runs with to ``<command>.yaml`` in its run folder.

    The file is one that ``--config`` takes; options that have no value are left out of it.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    from safeswitch.core.artifact import write_text

    used = {}
    for key, param in option_keys(ctx.command.params).items():
        value = ctx.params.get(param.name)
        if value is not None and value != ():
            used[key] = _plain(value)
    words = " ".join(ctx.command_path.split()[1:])
    name = f"{ctx.info_name}.yaml"
    head = f"# safeswitch {__version__}; again: safeswitch {words} --config {name}\n"
    text = yaml.safe_dump(used, sort_keys=False, allow_unicode=True)
    write_text(folder / name, head + text)


def _plain(value: object) -> object:
    """A value of an option as YAML has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _read(file: Path) -> dict[str, object]:
    try:
        text = file.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
        outline = yaml.compose(text, yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"--config: {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SettingError(f"--config: {file} is no YAML: {error}") from error
    _check_once(file, outline)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SettingError(f"--config: {file} must hold `key: value` lines; got {found!r}")
    for key in found:
        if not isinstance(key, str):
            raise SettingError(f"{file}: the key {key!r} must be a text; put it in quotes")
    return found


def _check_once(file: Path, outline: yaml.Node | None) -> None:
    """Raise :class:`SettingError` where a key comes twice; YAML itself would take the last."""
    seen: set[str] = set()
    for key, _ in outline.value if isinstance(outline, yaml.MappingNode) else ():
        if key.value in seen:
            line = key.start_mark.line + 1
            raise SettingError(f"{file}, line {line}: the key {key.value!r} comes twice")
        seen.add(key.value)


def _check_type(where: str, value: object, hint: object) -> None:
    """Raise :class:`SettingError` where ``value`` is not of the option's type."""
    kind, many = plain_type(hint)
    if many and not isinstance(value, list):
        raise SettingError(f"{where} must be a list, each {_WORDS[kind]}; got {value!r}")
    for one in value if isinstance(value, list) and many else [value]:
        # a bool is an int to Python, but not to whoever writes the file
        if not isinstance(one, _TAKEN[kind]) or (isinstance(one, bool) and kind is not bool):
            raise SettingError(f"{where} must be {_WORDS[kind]}; got {one!r}")
