"""What of a request decides the shape of its reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safeswitch.core.json_types import JsonMapping
from safeswitch.engines.context import Context
from safeswitch.serving.replies.choices import Choices
from safeswitch.serving.replies.form import Form
from safeswitch.serving.replies.messages import Messages
from safeswitch.serving.replies.responses import Responses

CHAT = "/v1/chat/completions"
FORMS: Mapping[str, type[Form]] = {"/v1/responses": Responses, "/v1/messages": Messages}
"""Routes with a form of their own; all others answer with choices."""
TOOLS = ("tools", "functions")
GRAMMARS = ("structured_outputs",)
FORMATS = (("response_format",), ("text", "format"), ("output_config", "format"))
"""Where a client names a format: in these fields, or in fields of these."""


def form_of(path: str) -> type[Form]:
    """The form of a route's replies."""
    return FORMS.get(path, Choices)


def shape(path: str, payload: JsonMapping, context: Context) -> None:
    """Note in ``context`` what a request means for the shape of its reply: see its ``structured``,
    ``formatted``, ``separate_refusals``."""
    context.formatted = any(_names_format(payload, where) for where in FORMATS)
    context.structured = context.formatted or any(payload.get(name) for name in (*TOOLS, *GRAMMARS))
    context.separate_refusals = path in FORMS or (path == CHAT and context.structured)
    context.tell_refusals = context.tell_refusals or context.separate_refusals


def _names_format(payload: JsonMapping, where: tuple[str, ...]) -> bool:
    """Whether the field at ``where`` asks for anything but text."""
    found: Any = payload
    for name in where:
        found = found.get(name) if isinstance(found, Mapping) else None
    return bool(found) and not (isinstance(found, Mapping) and found.get("type") == "text")
