"""The chat loop of the command line. Knows nothing of how replies come about."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from safeswitch.core.errors import SafeSwitchError
from safeswitch.core.types import Decision, Message
from safeswitch.engines.transformers_engine import TransformersEngine
from safeswitch.switch.switch import Switch


def converse(engine: TransformersEngine, switch: Switch | None, *, system: str | None, **options: Any) -> None:
    """Read a line, stream the reply, show the decision; until an empty line or the end of input.

    A request that cannot be answered (too long, say) is reported and dropped; the conversation goes on.
    """
    notes = Console(stderr=True)
    history: list[Message] = [Message("system", system)] if system else []
    prompt = "you> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt)
        except EOFError:
            return
        if not text.strip():
            return
        turns = [*history, Message("user", text)]
        stream = engine.stream(turns, switch, **options)
        try:
            for piece in stream:
                print(piece, end="", flush=True)
        except SafeSwitchError as error:
            notes.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            continue
        print()
        assert stream.reply is not None
        if switch is not None:
            notes.print(describe(stream.reply.decision), style="dim", markup=False, highlight=False, soft_wrap=True)
        history = [*turns, Message("assistant", stream.reply.text)]


def describe(decision: Decision) -> str:
    """One line: what fired, where, on what scores."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in decision.scores.items())
    bars = ", ".join(f"{name} {value:.3f}" for name, value in decision.thresholds.items())
    verdict = f"switched at {decision.stage}, token {decision.token_index}" if decision.fired else "not switched"
    return f"[{verdict}; scores: {scores or 'none'}; thresholds: {bars or 'none'}]"
