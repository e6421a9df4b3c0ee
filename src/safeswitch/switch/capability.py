"""Where a switch can run, told from the switch itself. Knows nothing of engines but their names."""

from __future__ import annotations

from typing import Literal

from safeswitch.switch.switch import Switch

EngineName = Literal["transformers", "vllm"]


def vllm_refusal(switch: Switch) -> str | None:
    """Why vLLM cannot run ``switch``; None where it can."""
    gate, actuator = switch.gate, switch.actuator
    if actuator.not_in_vllm is not None:
        return f"its action, {actuator.kind}, {actuator.not_in_vllm}; use --engine transformers"
    if gate.late is not None or gate.reread_points:
        return (
            "its gate reads after appended tokens, in a pass of its own, which vLLM does not run; "
            "use --engine transformers"
        )
    if gate.answers:
        return (
            "its stage 2 waits for the end of thinking, which vLLM's guard does not follow; use "
            "--engine transformers"
        )
    windows = [str(p) for p in gate.prompt_points if p.position.kind == "window"]
    if windows:
        return (
            f"it reads prompt tokens one by one ({', '.join(windows)}), which vLLM does not hand "
            "out; fit it with --readers steps or means, or use --engine transformers"
        )
    return None
