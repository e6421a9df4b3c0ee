"""From requests to what the probers and the head learn from: replies, compliance labels, recorded
states.

Knows engines only as something that generates. Knows nothing of probers or thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import ContextLengthError, FitError, TemplateError
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import (
    RUNNING,
    Example,
    Message,
    Prompt,
    ReadPoint,
    Reply,
    as_messages,
)
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.engine import ReadingEngine

Complied = Callable[[Example, str], bool]
"""Judge of one reply: did the model do what was asked?"""

REFUSAL_INSTRUCTIONS = (
    "Refuse this request. Say briefly what kind of harm it could do and offer a safe alternative.",
    "You must not help with harmful requests. Decline politely and explain why this one is "
    "harmful.",
    "This request breaks the rules. Answer only with a short, polite refusal that gives the "
    "reason.",
)
_LEAST_REFUSALS = 8


@dataclass(frozen=True, eq=False)
class ReadPrompts:
    """Requests with the states of their prompts.

    Args:
        examples: n requests.
        activations: States of the n requests.
    """

    examples: tuple[Example, ...]
    activations: Activations

    @cached_property
    def unsafe(self) -> Tensor:
        """``[n]`` bool."""
        return torch.tensor([e.unsafe for e in self.examples], dtype=torch.bool)

    @cached_property
    def ordinary(self) -> Tensor:
        """``[n]`` bool: safe, and no look-alike."""
        return torch.tensor([e.ordinary for e in self.examples], dtype=torch.bool)

    def select(self, rows: Tensor) -> ReadPrompts:
        """The requests at the ``[n]`` bool ``rows``."""
        chosen = tuple(e for e, yes in zip(self.examples, rows.tolist(), strict=True) if yes)
        return ReadPrompts(chosen, self.activations.select(rows))


@dataclass(frozen=True, eq=False)
class Observed:
    """Requests with the base model's replies, what they amount to, and recorded states; and those
    of which the prompt alone was read.

    Args:
        examples: n requests that the model answered.
        replies: The base model's replies.
        complied: ``[n]`` bool: the model did what was asked.
        activations: States of the n requests, of prompts and replies.
        prompts: All requests of the part, these n among them, with the states of their prompts.
    """

    examples: tuple[Example, ...]
    replies: tuple[Reply, ...]
    complied: Tensor
    activations: Activations
    prompts: ReadPrompts

    @cached_property
    def unsafe(self) -> Tensor:
        """``[n]`` bool."""
        return torch.tensor([e.unsafe for e in self.examples], dtype=torch.bool)

    @cached_property
    def ordinary(self) -> Tensor:
        """``[n]`` bool: safe, and no look-alike."""
        return torch.tensor([e.ordinary for e in self.examples], dtype=torch.bool)

    def select(self, rows: Tensor) -> Observed:
        """The answered requests at the ``[n]`` bool ``rows``; ``prompts`` stay."""
        index = rows.nonzero().flatten().tolist()
        return replace(
            self,
            examples=tuple(self.examples[i] for i in index),
            replies=tuple(self.replies[i] for i in index),
            complied=self.complied[rows],
            activations=self.activations.select(rows),
        )

    @property
    def harmful(self) -> Tensor:
        """``[n]`` bool: unsafe, and the model complied."""
        return self.unsafe & self.complied


def observe(
    engine: ReadingEngine,
    examples: Sequence[Example],
    points: Sequence[ReadPoint],
    *,
    complied: Complied,
    max_new_tokens: int,
    answered: Collection[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Observed:
    """Let the base model reply (greedily), judge the replies, and keep its states.

    Args:
        engine: Generates with the base model.
        examples: The requests of one part.
        points: What to read.
        complied: Judge of the replies.
        max_new_tokens: Longest reply.
        answered: Places of the requests that are replied to; None: all. Of the others the prompt
            alone is read, which costs a fraction.
        progress: Called with the number of requests done since the last call.
    """
    chosen = range(len(examples)) if answered is None else sorted(answered)
    told = [examples[i] for i in chosen]
    rest = sorted(set(range(len(examples))).difference(chosen))
    replies, states = engine.collect(told, points, max_new_tokens=max_new_tokens, progress=progress)
    judged: list[bool] = []
    for example, reply in zip(told, replies, strict=True):
        judged.append(complied(example, spoken(engine.lm, example, reply)))
    activations = _with_sources(states, told)
    before = [p for p in points if p.position.kind not in RUNNING]
    prompts = ReadPrompts(tuple(told), _only(activations, before))
    if rest:
        alone = [examples[i] for i in rest]
        _, others = engine.collect(alone, before, max_new_tokens=0, progress=progress)
        parts = [prompts.activations, _with_sources(others, alone)]
        prompts = ReadPrompts((*told, *alone), Activations.concatenate(parts))
    return Observed(tuple(told), tuple(replies), torch.tensor(judged), activations, prompts)


def _with_sources(activations: Activations, examples: Sequence[Example]) -> Activations:
    return replace(activations, sources=tuple(e.source for e in examples))


def _only(activations: Activations, points: Sequence[ReadPoint]) -> Activations:
    """The states at ``points`` alone."""
    states = {p: activations.states[p] for p in points}
    masks = {p: activations.masks[p] for p in points if p in activations.masks}
    return replace(activations, states=states, masks=masks)


def spoken(lm: LanguageModel, prompt: Prompt, reply: Reply) -> str:
    """What a reply says: its text, or where the model thinks, that of its answer alone."""
    if lm.thinking is None:
        return reply.text
    opened = lm.thinking_opened(as_messages(prompt), lm.inputs([prompt], check=False)[0].ids)
    shown = lm.thinking.visible(reply.token_ids, opened, whole=reply.decision.fired)
    return str(lm.tokenizer.decode(shown, skip_special_tokens=True))


def refusal_pairs(
    engine: ReadingEngine,
    examples: Sequence[Example],
    *,
    complied: Complied,
    most: int,
    max_new_tokens: int,
    trust: bool = False,
    track: Track = untracked,
) -> tuple[list[Example], list[str]]:
    """Unsafe requests with the refusals that the head shall learn.

    A request's own ``reply`` is taken where there is one. Where no request of the part has one, the
    model writes refusals itself under a safety instruction, and those that refuse are kept.

    Args:
        trust: Take the replies given as refusals even where ``complied`` sees compliance in most of
            them.
        track: Told of the refusals as they are written.

    Raises:
        FitError: fewer than eight refusals in the end (than ``most``, when that is smaller), or
            replies given that comply.
    """
    unsafe = [e for e in examples if e.unsafe]
    given = [e for e in unsafe if e.reply][:most]
    if given:
        if not trust:
            _check_refusals(given, complied)
        return given, [e.reply or "" for e in given]
    room = 4 * max_new_tokens
    chosen = _with_room(engine, unsafe, room)[:most]
    pairs = _written_refusals(engine, chosen, complied, room, track)
    least = min(_LEAST_REFUSALS, most)
    if len(pairs) < least:
        raise FitError(
            f"the model wrote only {len(pairs)} refusals to {len(chosen)} unsafe requests under a "
            f"safety instruction; at least {least} are needed: give refusals yourself in the field "
            "'reply' of the unsafe requests"
        )
    return [e for e, _ in pairs], [text for _, text in pairs]


def _check_refusals(given: Sequence[Example], complied: Complied) -> None:
    """Raise :class:`FitError` where most of the replies that came with the data comply."""
    wrong = [e for e in given if complied(e, e.reply or "")]
    if len(wrong) > len(given) / 2:
        raise FitError(
            "the head learns the field 'reply' of unsafe requests as refusals, but "
            f"{len(wrong)} of {len(given)} do not read as refusals, the first that of "
            f"{wrong[0].id!r}; give refusals, leave 'reply' out, or set trust_replies "
            "(--trust-replies) if they are refusals in words that the judge does not know"
        )


def _written_refusals(
    engine: ReadingEngine, examples: Sequence[Example], complied: Complied, room: int, track: Track
) -> list[tuple[Example, str]]:
    """Requests with refusals of the model's own; those that it does not refuse are asked again
    under the next instruction."""
    pairs: list[tuple[Example, str]] = []
    left = list(examples)
    for number, instruction in enumerate(REFUSAL_INSTRUCTIONS, 1):
        if not left:
            break
        prompts = [_instructed(e, instruction) for e in left]
        title = f"refusals, instruction {number} of {len(REFUSAL_INSTRUCTIONS)}"
        with track(len(prompts), title) as advance:
            replies = engine.generate(
                prompts, max_new_tokens=room, do_sample=False, progress=advance
            )
        again = []
        for example, prompt, reply in zip(left, prompts, replies, strict=True):
            text = spoken(engine.lm, prompt, reply)
            if text.strip() and not complied(example, text):
                pairs.append((example, text.strip()))
            else:
                again.append(example)
        left = again
    return pairs


def _with_room(engine: ReadingEngine, examples: Sequence[Example], room: int) -> list[Example]:
    """Those that the chat template takes and the context holds under every instruction, with
    ``room`` reply tokens."""
    return [e for e in examples if _takes_instructions(engine, e, room)]


def _takes_instructions(engine: ReadingEngine, example: Example, room: int) -> bool:
    try:
        engine.lm.inputs(
            [_instructed(example, instruction) for instruction in REFUSAL_INSTRUCTIONS], room=room
        )
    except (ContextLengthError, TemplateError):
        return False
    return True


def _instructed(example: Example, instruction: str) -> tuple[Message, ...]:
    if example.messages[0].role == "system":
        joined = Message("system", f"{instruction}\n{example.messages[0].content}")
        return (joined, *example.messages[1:])
    return (Message("system", instruction), *example.messages)
