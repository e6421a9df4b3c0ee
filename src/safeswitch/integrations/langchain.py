"""A guard for LangChain: a Runnable in front of a chat model, ``guard | model``.

What passes goes on as it came; what is flagged raises :class:`Flagged` before the model is asked.
Needs ``safeswitch[langchain]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.integrations.checks import Checks, Flagged

if TYPE_CHECKING:
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.runnables import Runnable


def langchain_guard(checks: Checks) -> Runnable[LanguageModelInput, LanguageModelInput]:
    """A Runnable from whatever a chat model takes (text, messages, a prompt) to the same.

    Args:
        checks: Who is asked.

    Raises:
        SettingError: LangChain is not installed.
    """
    try:
        from langchain_core.language_models import LanguageModelInput
        from langchain_core.messages import convert_to_messages, convert_to_openai_messages
        from langchain_core.prompt_values import PromptValue
        from langchain_core.runnables import RunnableLambda
    except ModuleNotFoundError as error:
        raise SettingError(
            f"langchain_guard needs {error.name}: pip install 'safeswitch[langchain]'"
        ) from error

    def turns(given: LanguageModelInput) -> list[JsonObject]:
        if isinstance(given, str):
            return [{"role": "user", "content": given}]
        found = given.to_messages() if isinstance(given, PromptValue) else given
        return convert_to_openai_messages(convert_to_messages(found))

    def guard(given: LanguageModelInput) -> LanguageModelInput:
        return _passed(given, checks.check(turns(given)))

    async def aguard(given: LanguageModelInput) -> LanguageModelInput:
        return _passed(given, await checks.acheck(turns(given)))

    step = RunnableLambda(guard, aguard, name="safeswitch")
    # its schema would be made of the annotations above, whose names LangChain cannot look up
    taken: Any = LanguageModelInput  # a union, which with_types takes though it declares classes
    return step.with_types(input_type=taken, output_type=taken)


T = TypeVar("T")


def _passed(given: T, found: JsonObject) -> T:
    if found["flagged"]:
        raise Flagged(found)
    return given
