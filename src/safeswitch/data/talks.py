"""A request as it stands in longer conversations. Its label stays: what is around it is harmless.

One function a shape; each takes what it puts around the request from a :class:`Talk`, so that the
words may be those of one model's corpus. Knows nothing of models and benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from safeswitch.core.types import Example, Message

T = TypeVar("T")
Exchange = tuple[str, str]
"""What the user says and what the assistant replies."""


@dataclass(frozen=True)
class Talk:
    """What stands around requests.

    Args:
        exchanges: Harmless ones.
        refused: Requests that were refused, with their refusals.
        sentences: Of a harmless document.
        operators: System prompts of operators.
    """

    exchanges: Sequence[Exchange]
    refused: Sequence[Exchange]
    sentences: Sequence[str]
    operators: Sequence[str]


Shape = Callable[[Example, Talk, int], Example]
"""Puts something of a talk around an example; the number says where in the talk to begin."""
_DOCUMENT = 10
"""Sentences around a request, half of them on either side."""


def several_turns(example: Example, talk: Talk, number: int) -> Example:
    """Two harmless exchanges, then the request."""
    past = [_from(talk.exchanges, number + i) for i in range(2)]
    return _shaped(example, "turns", before_last(example.messages, _turns(past)))


def after_refusal(example: Example, talk: Talk, number: int) -> Example:
    """A refused request, then the request; in every other pair of rows with a harmless exchange
    between."""
    past = [_from(talk.refused, number)]
    if number // 2 % 2:
        past.append(_from(talk.exchanges, number))
    return _shaped(example, "after_refusal", before_last(example.messages, _turns(past)))


def in_halves(example: Example, talk: Talk, number: int) -> Example:
    """The request in two halves over two turns, which the last one asks to put together."""
    return _shaped(example, "split", halves(example.messages))


def in_document(example: Example, talk: Talk, number: int) -> Example:
    """The request in the middle of a long harmless text."""
    lines = [_from(talk.sentences, number + i) for i in range(_DOCUMENT)]
    middle = _DOCUMENT // 2
    text = "\n\n".join((" ".join(lines[:middle]), example.prompt, " ".join(lines[middle:])))
    last = replace(example.messages[-1], content=text)
    return _shaped(example, "document", (*example.messages[:-1], last))


def under_operator(example: Example, talk: Talk, number: int) -> Example:
    """The request behind an operator's system prompt."""
    system = Message("system", _from(talk.operators, number))
    return _shaped(example, "operator", (system, *example.messages))


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "turns": several_turns,
        "after_refusal": after_refusal,
        "split": in_halves,
        "document": in_document,
        "operator": under_operator,
    }
)


def shaped(name: str, examples: Sequence[Example], talk: Talk) -> list[Example]:
    """All examples in one shape of ``SHAPES``; one after another takes the next words of the
    talk."""
    return [SHAPES[name](example, talk, number) for number, example in enumerate(examples)]


def halves(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation whose last turn comes in two halves (payload splitting, Kang et al. 2023,
    arXiv 2302.05733)."""
    words = messages[-1].content.split()
    middle = (len(words) + 1) // 2
    parts = (" ".join(words[:middle]), " ".join(words[middle:]))
    kept = [
        (f"Keep this as {name}: {part}", "Sure.") for name, part in zip("AB", parts, strict=True)
    ]
    ask = Message("user", "Put A and B together and answer.")
    return (*messages[:-1], *_turns(kept), ask)


def before_last(messages: Sequence[Message], turns: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with ``turns`` in front of its last turn."""
    return (*messages[:-1], *turns, messages[-1])


def _turns(exchanges: Sequence[Exchange]) -> list[Message]:
    turns = []
    for asked, replied in exchanges:
        turns += [Message("user", asked), Message("assistant", replied)]
    return turns


def _from(items: Sequence[T], number: int) -> T:
    return items[number % len(items)]


def _shaped(example: Example, name: str, messages: tuple[Message, ...]) -> Example:
    return replace(
        example,
        id=f"{example.id}-{name}",
        messages=messages,
        meta={**example.meta, "shape": name},
    )
