"""An input guardrail for OpenAI's Agents SDK: flagged input stops the run before the agent starts.

The SDK then raises ``InputGuardrailTripwireTriggered``, whose output holds the reply of
``POST /v1/checks``. It asks input guardrails once, for the first agent of a run; what tools return
later is not shown to them. Needs ``safeswitch[agents]``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.integrations.checks import Checks

if TYPE_CHECKING:
    from agents import InputGuardrail


def agents_guardrail(checks: Checks) -> InputGuardrail[Any]:
    """A guardrail for ``Agent(input_guardrails=[...])``.

    Args:
        checks: Who is asked.

    Raises:
        SettingError: the Agents SDK is not installed.
    """
    try:
        from agents import GuardrailFunctionOutput, InputGuardrail
    except ModuleNotFoundError as error:
        raise SettingError(
            f"agents_guardrail needs {error.name}: pip install 'safeswitch[agents]'"
        ) from error

    async def guard(
        context: object, agent: object, given: str | list[JsonObject]
    ) -> GuardrailFunctionOutput:
        found = await checks.acheck(turns_of(given))
        return GuardrailFunctionOutput(output_info=found, tripwire_triggered=found["flagged"])

    # beside the agent, the model would have been asked before the guard has spoken
    return InputGuardrail(guard, name="safeswitch", run_in_parallel=False)


def turns_of(given: str | list[JsonObject]) -> list[JsonObject]:
    """Input of the Agents SDK, which is that of the Responses API, as chat messages.

    Items that are neither messages nor calls of functions nor their results hold nothing to read.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    turns: list[JsonObject] = []
    for item in given:
        kind = item.get("type", "message")
        if kind == "message":
            turns.append({"role": item["role"], "content": _text(item.get("content"))})
        elif kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item["output"]
            content = output if isinstance(output, str) else _text(output) or json.dumps(output)
            turns.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
    return turns


def _text(content: object) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts.append(part["text"])
    return "\n".join(parts)
