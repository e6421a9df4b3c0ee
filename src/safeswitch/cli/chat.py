"""``safeswitch chat``: the command and its loop. Knows nothing of how replies come about."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safeswitch.cli.load import load_engine, load_guard
from safeswitch.cli.options import DecodingOptions, ModelOptions, SwitchOptions
from safeswitch.cli.screen import put, say
from safeswitch.core.errors import ContextLengthError, SafeSwitchError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.types import Decision, Message, Reply

if TYPE_CHECKING:
    from safeswitch.engines.transformers.engine import TransformersEngine
    from safeswitch.switch.switch import Switch

AFRESH = "/new"


def chat(
    model: ModelOptions,
    guard: SwitchOptions,
    decoding: DecodingOptions,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
) -> None:
    """Talk to the guarded model; shows the gate's decision after each reply.

    The line /new starts the conversation over; an empty line or the end of input leaves. When the
    conversation has outgrown the model's context, its oldest turns are left out.
    """
    asked = decoding.for_engine()
    engine = load_engine(model, batch_size=1, allow_other_model=guard.allow_other_model)
    converse(engine, load_guard(guard.switch), system=system, **asked)


def converse(
    engine: TransformersEngine, switch: Switch | None, *, system: str | None, **options: Any
) -> None:
    """Read a line, stream the reply, show the decision; until an empty line or the end of input.

    A request that cannot be answered (too long, no UTF-8) is reported and dropped; the conversation
    goes on. Where the conversation does not fit into the context, its oldest turns are dropped,
    never the system message. ``/new`` drops all.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        # bytes that are no UTF-8 reach Message, which refuses them
        sys.stdin.reconfigure(errors="surrogateescape")
    head = [Message("system", system)] if system else []
    past: list[Message] = []
    prompt = "you> " if sys.stdin.isatty() else ""
    while text := _line(prompt):
        if text.strip() == AFRESH:
            past = []
            say("[a new conversation]", style="dim")
            continue
        try:
            turns = [*past, Message("user", text)]
            reply, dropped = _answer(engine, switch, head, turns, options)
        except SafeSwitchError as error:
            say(f"{type(error).__name__}: {error}", style="red")
            continue
        if dropped:
            say(f"[the oldest {dropped} turns no longer fit and were left out]", style="dim")
        if switch is not None:
            say(describe(reply.decision), style="dim")
        past = [*turns[dropped:], Message("assistant", reply.text)]


def _line(prompt: str) -> str:
    """The next line; empty for a line of white space and at the end of input."""
    try:
        text = input(prompt)
    except EOFError:
        return ""
    return text if text.strip() else ""


def _answer(
    engine: TransformersEngine,
    switch: Switch | None,
    head: Sequence[Message],
    turns: Sequence[Message],
    options: JsonObject,
) -> tuple[Reply, int]:
    """Stream the reply to standard output.

    Returns:
        The reply, and how many of the oldest turns had to be left out for it.
    """
    dropped = 0
    while True:
        stream = engine.stream([*head, *turns[dropped:]], switch, **options)
        try:
            for piece in stream:
                put(piece, end="")
        except ContextLengthError:
            if dropped == len(turns) - 1:
                raise
            dropped += 2
            continue
        put("")
        assert stream.reply is not None
        return stream.reply, dropped


def describe(decision: Decision) -> str:
    """One line: what fired, where, on what scores."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in decision.scores.items())
    bars = ", ".join(f"{name} {value:.3f}" for name, value in decision.thresholds.items())
    outcome = "not switched"
    if decision.fired:
        outcome = f"switched at {decision.stage}, token {decision.token_index}"
        if decision.category:
            outcome += f", {decision.category} ({decision.severity})"
    return f"[{outcome}; scores: {scores or 'none'}; thresholds: {bars or 'none'}]"
