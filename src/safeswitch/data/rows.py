"""One row of a data file, as a mapping of field to value, turned into an :class:`Example`.

Knows the schema. Knows nothing of files and of where rows come from.

Fields, all optional but the prompt (or messages):

    id          unique within the file; default ``<file stem>-<row number>``
    prompt      text of one user turn; or
    messages    list of ``{"role", "content"}``, the user's last; content is text, or a list of
                parts with text and images
    label       ``safe`` or ``unsafe``: what the request deserves; may be missing where that is not
                asked
    context     text that belongs in front of the request, see :func:`context_role`
    category, source, group, wrapper, reply, prefill
    answers     accepted answers (a text or a list of texts); a ``reference`` that is a list is read
                as answers; text that begins with ``[`` is read as a JSON list
    meta        mapping of further facts; every field not named here (``lang``, ``variant``,
                ``reference``, ...) goes there too, as text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from safeswitch.core.errors import DataError, check_unicode
from safeswitch.core.json_types import JsonMapping, JsonObject
from safeswitch.core.strict_json import parse_json
from safeswitch.core.types import LABELS, Example, Message

ContextRole = Literal["auto", "prompt", "system"]

CONTEXT_ROLES: tuple[str, ...] = ("auto", "prompt", "system")
CONTEXT_JOIN = "\n\n---\n\n"
_TEXT_FIELDS = ("category", "source", "group", "wrapper", "prefill")
_KNOWN = frozenset(
    ("id", "prompt", "messages", "label", "context", "reply", "answers", "meta", *_TEXT_FIELDS)
)


def context_role(row: JsonMapping) -> Literal["prompt", "system"]:
    """Where the ``context`` of a row goes when nothing is said: the system message for
    prompt-injection rows (the word pair stands in their ``source``, ``category`` or ``id``), whose
    context is the instruction under attack; otherwise in front of the prompt, as HarmBench's
    contextual behaviours want, divided by a rule as its authors do."""
    about = " ".join(str(row.get(name, "")) for name in ("source", "category", "id")).lower()
    return "system" if "prompt_injection" in about.replace(" ", "_").replace("-", "_") else "prompt"


def to_example(
    row: JsonMapping,
    *,
    number: int,
    origin: str,
    label: str | None = None,
    labelled: bool = True,
    prompt_field: str = "prompt",
    context: ContextRole = "auto",
) -> Example:
    """Build the example of one row.

    Args:
        row: Field to value; empty text and None count as absent.
        number: Row or line number, for the default id.
        origin: File stem or data set name, for the default id and source.
        label: Label of rows that have none.
        labelled: Whether a row must have a label in the end; without one, the example's label is
            empty.
        prompt_field: Field that holds the prompt.
        context: Where ``context`` goes; ``auto`` asks :func:`context_role`.

    Raises:
        DataError: naming the field, the value got and what is allowed.
    """
    given = {key: value for key, value in row.items() if value is not None and value != ""}
    for name, value in given.items():
        for text in _texts((name, value)):
            check_unicode(f"field {name!r}", text)
            if "\0" in text:
                raise DataError(
                    f"field {name!r}: character {text.index(chr(0)) + 1} is NUL (U+0000), which no "
                    "text may hold"
                )
    found_label = given.get("label", label)
    if found_label is None and labelled:
        raise DataError(
            f"field 'label' is missing; give {' or '.join(LABELS)}, or a default with label=..."
        )
    if found_label not in (*LABELS, None):
        raise DataError(f"field 'label' must be {' or '.join(LABELS)}; got {found_label!r}")
    messages = _messages(given, prompt_field)
    if "context" in given:
        role = context_role(given) if context == "auto" else context
        messages = _with_context(messages, _text(given, "context"), role)
    texts = {name: _text(given, name) for name in _TEXT_FIELDS if name in given}
    texts.setdefault("source", origin)
    return Example(
        id=_text(given, "id") if "id" in given else f"{origin}-{number}",
        messages=messages,
        label=found_label or "",
        reply=_text(given, "reply") if "reply" in given else None,
        answers=_answers(given),
        meta=_meta(given, prompt_field),
        **texts,
    )


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value, keys of mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.items() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _text(row: JsonMapping, name: str) -> str:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"field {name!r} must be text; got {type(value).__name__}")
    return str(value)


def _messages(row: JsonMapping, prompt_field: str) -> tuple[Message, ...]:
    if prompt_field in row and "messages" in row:
        raise DataError(f"fields {prompt_field!r} and 'messages' are both there; give one")
    if prompt_field in row:
        text = row[prompt_field]
        if not isinstance(text, str):
            raise DataError(f"field {prompt_field!r} must be text; got {type(text).__name__}")
        if not text.strip():
            raise DataError(f"field {prompt_field!r} is only white space")
        return (Message("user", text),)
    if "messages" not in row:
        have = ", ".join(row) or "none"
        raise DataError(
            f"no prompt: field {prompt_field!r} or 'messages' must be there; fields: {have}"
        )
    turns = row["messages"]
    if isinstance(turns, str):
        turns = _parsed("messages", turns)
    if not isinstance(turns, list) or not turns:
        raise DataError(
            "field 'messages' must be a list of {'role', 'content'} with at least one turn"
        )
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise DataError(f"field 'messages': turn {i} needs 'role' and 'content'; got {turn!r}")
    return tuple(_turn(i, turn) for i, turn in enumerate(turns))


def _turn(i: int, turn: JsonMapping) -> Message:
    try:
        return Message.of(turn["role"], turn["content"])
    except DataError as error:
        raise DataError(f"field 'messages': turn {i}: {error}") from error


def _parsed(name: str, text: str) -> Any:
    """The value of a field that was given as text, as cells of CSV files are."""
    try:
        return parse_json(text)
    except DataError as error:
        raise DataError(f"field {name!r} is text, {error}") from error


def _with_context(messages: tuple[Message, ...], context: str, role: str) -> tuple[Message, ...]:
    if role == "system":
        if messages[0].role == "system":
            raise DataError(
                "field 'context' is to be the system message, but 'messages' has one already"
            )
        return (Message("system", context), *messages)
    return (*messages[:-1], messages[-1].around(before=f"{context}{CONTEXT_JOIN}"))


def _answers(row: JsonMapping) -> tuple[str, ...]:
    value = row.get("answers")
    if value is None and isinstance(row.get("reference"), list):
        value = row["reference"]
    if value is None:
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed("answers", value)
    if isinstance(value, str | int | float):
        value = [value]
    if not isinstance(value, list | tuple) or not all(
        isinstance(v, str | int | float) for v in value
    ):
        raise DataError(f"field 'answers' must be a text or a list of texts; got {value!r:.60}")
    return tuple(str(v) for v in value)


def _meta(row: JsonMapping, prompt_field: str) -> dict[str, str]:
    meta: JsonObject = {k: v for k, v in row.items() if k not in _KNOWN and k != prompt_field}
    if isinstance(meta.get("reference"), list) and "answers" not in row:
        del meta["reference"]
    extra = row.get("meta", {})
    if isinstance(extra, str):
        extra = _parsed("meta", extra)
    if not isinstance(extra, Mapping):
        raise DataError(f"field 'meta' must be a mapping; got {type(extra).__name__}")
    twice = [key for key in extra if key in meta and meta[key] != extra[key]]
    if twice:
        raise DataError(
            f"field {twice[0]!r} stands in the row and, with another value, in 'meta'; give one"
        )
    meta.update(extra)
    return {
        str(k): v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
        for k, v in meta.items()
        if v is not None
    }
