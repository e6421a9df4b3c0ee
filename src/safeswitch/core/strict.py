"""Plain JSON into typed values, nothing guessed: a bool is a bool, a whole number is whole, an
unknown field is an error.

What is allowed is said once, by a dataclass's own annotations; ranges stay with the class that
knows them. Knows nothing of what is read.
"""

from __future__ import annotations

import dataclasses
import math
import types
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from safeswitch.core.errors import ArtifactError
from safeswitch.core.json_types import JsonMapping, JsonObject

T = TypeVar("T")


def shown(value: object) -> str:
    """A value as messages show it: short, on one line, without control characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def build(
    cls: type[T],
    config: object,
    where: str,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    absent: Sequence[str] = (),
    **given: object,
) -> T:
    """Make the dataclass ``cls`` from a JSON object.

    Args:
        cls: A dataclass of bool, int, float, str, ``Literal``, ``None``, tuples, mappings and
            tensors.
        config: Its fields but the tensors; all others are refused.
        where: What messages begin with.
        tensors: Its tensors by field.
        absent: Fields that may be absent, and then have their default; any other default would be a
            guess.
        given: Fields that are at hand.

    Raises:
        ArtifactError: a field that is unknown, missing, or of another type.
    """
    values = dict(mapping(config, where))
    hints = _hints(cls)  # type: ignore[arg-type]
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    plain = [name for name in known if hints[name] is not Tensor and name not in given]
    unknown = [name for name in values if name not in plain]
    if unknown:
        allowed = ", ".join(plain) or "none"
        raise ArtifactError(f"{where}: unknown field {shown(unknown[0])}; known: {allowed}")
    made = {name: typed(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    made |= {
        name: tensor
        for name, tensor in (tensors or {}).items()
        if name in known and hints[name] is Tensor
    }
    made |= given
    for name in known:
        if name not in made and name not in absent:
            what = "tensor" if hints[name] is Tensor else "field"
            raise ArtifactError(f"{where}: {what} {name!r} is missing")
    return cls(**made)


@cache
def _hints(cls: type) -> JsonObject:
    return {
        name: hint for name, hint in get_type_hints(cls).items() if get_origin(hint) is not ClassVar
    }


def typed(hint: object, value: object, where: str) -> Any:
    """``value`` as ``hint`` wants it: lists become tuples, whole numbers may stand for others.

    Raises:
        ArtifactError: a value of another type.
    """
    found = _fitted(hint, value, where)
    if found is _MISFIT:
        raise ArtifactError(f"{where} must be {described(hint)}; got {shown(value)}")
    return found


_MISFIT = object()


def _fitted(hint: object, value: object, where: str) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        fits = (_fitted(one, value, where) for one in arguments)
        return next((found for found in fits if found is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if type(value) is str and value in arguments else _MISFIT
    if origin is tuple:
        return _fitted_tuple(arguments, value, where)
    if hint is Any:
        return value
    if origin is not None and issubclass(origin, Mapping):
        return value if isinstance(value, dict) else _MISFIT
    return _fitted_plain(hint, value)


def _fitted_plain(hint: object, value: object) -> object:
    if hint is float and (type(value) is int or type(value) is float):
        return _finite(value)
    if hint is type(None):
        return value if value is None else _MISFIT
    return value if type(value) is hint else _MISFIT


def _finite(value: float) -> object:
    try:
        number = float(value)
    except OverflowError:
        return _MISFIT
    return number if math.isfinite(number) else _MISFIT


def _fitted_tuple(arguments: Sequence[object], value: object, where: str) -> object:
    if not isinstance(value, list | tuple):
        return _MISFIT
    if arguments[-1] is Ellipsis:
        return tuple(typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        return _MISFIT
    return tuple(
        typed(one, item, f"{where}[{i}]")
        for i, (one, item) in enumerate(zip(arguments, value, strict=True))
    )


_WORDS: Mapping[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "null",
}


def described(hint: object) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described(one) for one in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {described(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {', '.join(map(described, arguments))}"
    return _WORDS.get(hint, "an object")


def mapping(value: object, where: str) -> JsonMapping:
    """``value`` if it is a JSON object.

    Raises:
        ArtifactError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{where} must be an object; got {shown(value)}")
    return value


def take(values: JsonMapping, name: str, hint: object, where: str) -> Any:
    """The field ``name``, typed.

    Raises:
        ArtifactError: it is missing, or of another type.
    """
    if name not in values:
        raise ArtifactError(f"{where}: field {name!r} is missing; it must be {described(hint)}")
    return typed(hint, values[name], f"{where}.{name}")


def only(values: JsonMapping, known: Sequence[str], where: str) -> None:
    """Raise :class:`ArtifactError` where there is a field that is none of ``known``."""
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ArtifactError(
            f"{where}: unknown field {shown(unknown[0])}; known: {', '.join(known)}"
        )


def one_line(text: str) -> str:
    """Text without what moves the cursor or turns the writing: control and format characters become
    U+FFFD."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _MOVING else c for c in text
    )


_MOVING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def cleaned(value: Any) -> Any:
    """Plain JSON with every text in it, keys among them, without control characters but line ends
    and tabs."""
    if isinstance(value, str):
        return "".join("\N{REPLACEMENT CHARACTER}" if _controls(c) else c for c in value)
    if isinstance(value, Mapping):
        return {cleaned(name): cleaned(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(item) for item in value]
    return value


def _controls(character: str) -> bool:
    return character not in "\n\r\t" and unicodedata.category(character) in ("Cc", "Cs")


def check_texts(value: object, where: str, *, controls: bool = False) -> None:
    """Raise :class:`ArtifactError` for a text, key or value, that :func:`cleaned` would change.

    With ``controls`` only half a surrogate pair is refused: a model's own words may hold anything
    else.
    """
    if isinstance(value, str) and cleaned(value) != value:
        _refuse_text(value, where, controls)
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_texts(name, f"{where}: a field's name", controls=controls)
            check_texts(item, f"{where}.{name}", controls=controls)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_texts(item, f"{where}[{i}]", controls=controls)


def _refuse_text(text: str, where: str, controls: bool) -> None:
    halves = any(unicodedata.category(c) == "Cs" for c in text)
    if halves or not controls:
        raise ArtifactError(
            f"{where} holds a control character or half of a surrogate pair; got {shown(text)}"
        )


def check_shapes(
    where: str,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, str],
    sizes: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Hold tensors to shapes such as ``"d h"``: one letter is one size, 1 or more, wherever it
    stands.

    Args:
        where: What messages begin with.
        tensors: By name; others than those of ``shapes`` are refused.
        shapes: By name, sizes joined by spaces: letters, or numbers. A leading ``int`` asks for
            whole numbers.
        sizes: Letters that are known beforehand.

    Returns:
        All letters.

    Raises:
        ArtifactError: a tensor that is missing, unknown, of another shape or kind, or not finite.
    """
    for name in shapes:
        if name not in tensors:
            have = ", ".join(sorted(tensors)) or "none"
            raise ArtifactError(f"{where}: tensor {name!r} is missing; stored: {have}")
    only(tensors, list(shapes), f"{where}, tensors")
    bound = dict(sizes or {})
    for name, shape in shapes.items():
        _check_shape(f"{where}: tensor {name!r}", tensors[name], shape, bound)
    return bound


def _check_shape(where: str, tensor: Tensor, shape: str, bound: dict[str, int]) -> None:
    letters = shape.split()
    whole = letters[0] == "int"
    letters = letters[whole:]
    if whole == tensor.is_floating_point() or tensor.is_complex():
        raise ArtifactError(
            f"{where} must hold {'whole' if whole else 'floating-point'} numbers; it holds "
            f"{tensor.dtype}"
        )
    fits = len(letters) == tensor.ndim
    for letter, size in zip(letters, tensor.shape, strict=False):
        wanted = int(letter) if letter.isdecimal() else bound.setdefault(letter, size)
        fits = fits and size == wanted and size > 0
    if not fits:
        known = ", ".join(f"{letter} = {bound[letter]}" for letter in letters if letter in bound)
        raise ArtifactError(
            f"{where} must be [{', '.join(letters)}]{f' with {known}' if known else ''}, each 1 or "
            f"more; got {list(tensor.shape)}"
        )
    check_finite(where, tensor)


def check_finite(where: str, tensor: Tensor) -> None:
    """Raise :class:`ArtifactError` unless every value is a finite number."""
    bad = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
    if bad:
        raise ArtifactError(
            f"{where} holds {bad} values that are not finite; each must be a finite number"
        )
