"""How a function becomes a command: its groups of options spelled out, ``--config`` added, help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from safeswitch.cli.config import ConfigOption, newest_name, option_keys, plain_type
from safeswitch.cli.options import OTHER
from safeswitch.core.json_types import JsonObject

Function = Callable[..., Any]
_SHOWN = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
"""What stands for a value in the help, by its type."""


def add(
    app: typer.Typer,
    function: Function,
    name: str | None = None,
    *,
    panel: str | None = None,
    passes_on: bool = False,
) -> None:
    """Make ``function`` a command of ``app``.

    Each parameter whose type is a dataclass is spelled out: its fields become the options, and the
    function gets the object. Every command also takes ``--config``.

    Args:
        app: Where the command goes.
        function: What it does; its docstring is the help.
        name: Of the command; None: the function's own.
        panel: Heading in the help under which the command stands.
        passes_on: Whether words that are no options of the command are for another program.
    """
    settings = {"allow_extra_args": passes_on, "ignore_unknown_options": passes_on}
    made = spelled_out(function)
    app.command(name, cls=Command, rich_help_panel=panel, context_settings=settings)(made)


def spelled_out(function: Function, *, config: bool = True) -> Function:
    """``function`` with the fields of its groups of options in place of the groups.

    A group is a parameter whose type is a dataclass; where that has an attribute ``panel``, its
    options stand under this heading in the help.

    Args:
        function: What a command does.
        config: Whether the command takes ``--config`` too.

    Raises:
        ValueError: two options of one name.
    """
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    groups: JsonObject = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    # without a heading Typer would show these first, above the groups with what is required
    panel = function.__name__.capitalize() if groups else None
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _options_of(groups[parameter.name])
        else:
            annotation = _shown(hints[parameter.name], panel)
            parameters.append(_keyword(parameter.name, annotation, parameter.default))
    if config:
        parameters.append(_keyword("config", _shown(ConfigOption, OTHER), None))

    def run(**given: Any) -> Any:
        for name, group in groups.items():
            values = {field.name: given.pop(field.name) for field in fields(group)}
            given[name] = group(**values)
        given.pop("config", None)
        return function(**given)

    update_wrapper(run, function)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options_of(group: Any) -> list[inspect.Parameter]:
    """One keyword parameter for each field of a dataclass."""
    hints = get_type_hints(group, include_extras=True)
    panel = getattr(group, "panel", None)
    found = []
    for field in fields(group):
        annotation = _shown(hints[field.name], panel)
        found.append(_keyword(field.name, annotation, _default(field)))
    return found


def _default(field: Field[object]) -> object:
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _shown(hint: object, panel: str | None) -> object:
    """A type with its option under ``panel`` in the help, and a short word for its value."""
    if get_origin(hint) is not Annotated:
        return hint
    base, info = get_args(hint)
    if not isinstance(info, OptionInfo):
        return hint
    info = copy(info)
    info.rich_help_panel = info.rich_help_panel or panel
    kind, _ = plain_type(base)
    if info.metavar is None and kind is not bool:
        info.metavar = _SHOWN[kind]
    return Annotated[base, info]


class Command(TyperCommand):
    """A command that knows old names of its options, and whose flags have no word for a value in
    the help."""

    def parse_args(  # type: ignore[override]
        self, ctx: typer.Context, args: list[str]
    ) -> list[str]:
        known = option_keys(self.params)
        return super().parse_args(ctx, [_newest_option(word, known) for word in args])

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        found = super().get_params(ctx)
        for param in found:
            if "--help" in param.opts:
                param.rich_help_panel = OTHER  # type: ignore[attr-defined]
        return _without_words_for_flags(found)


def _newest_option(word: str, known: Collection[str]) -> str:
    """A word of the command line, an old option in it replaced by what it is called now."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.removeprefix("--").partition("=")
    return f"--{newest_name(name, known)}{equals}{value}"


class Group(TyperGroup):
    """A group of commands, in the order in which they were added."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        return _without_words_for_flags(super().get_params(ctx))


def _without_words_for_flags(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params
