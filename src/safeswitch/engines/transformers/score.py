"""Log-likelihood of given replies under a switch, for multiple-choice tasks.

The gate decides as it does when the model replies: on the prompt, and where it has a second stage
on its own first reply tokens. Where it fires, the reply is scored with the actuator in force. The
watch has nothing to read in a reply that is given.
Letters: b rows, t tokens, V vocabulary. Knows nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from safeswitch.core.errors import SettingError
from safeswitch.core.types import Message, Prompt, Tokens, as_messages
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.engines.transformers.steer import acting
from safeswitch.models.language_model import LanguageModel
from safeswitch.switch.actuators.base import Actuator, HeadActuator, NoAction
from safeswitch.switch.switch import Switch

_Given = tuple[Message, ...] | Tokens


class Likelihood(NamedTuple):
    """Sum of the reply tokens' log-probabilities in nats, and whether each was the likeliest
    token."""

    log_prob: float
    greedy: bool


def log_likelihoods(
    engine: TransformersEngine, pairs: Sequence[tuple[Prompt, str]], switch: Switch | None = None
) -> list[Likelihood]:
    """One likelihood a pair of prompt and reply, in order.

    Args:
        engine: Model and batch size.
        pairs: Prompt (through the chat template, tokens as they are) and the text of a reply or of
            its beginning.
        switch: None scores the untouched model.

    Raises:
        ContextLengthError: a prompt that does not fit.
        FingerprintError: a switch of another model.
        SettingError: an action whose effect on a given reply is not the same at every token, or
            that would edit tokens.
    """
    conversations = [
        prompt if isinstance(prompt, Tokens) else as_messages(prompt) for prompt, _ in pairs
    ]
    fired = _fired(engine, conversations, switch)
    actuator = switch.actuator if switch is not None else NoAction()
    _check(actuator)
    found: dict[int, Likelihood] = {}
    for acted in (False, True):
        rows = [i for i, hit in enumerate(fired) if hit == acted]
        own = actuator if acted else NoAction()
        edited = [_edited(conversations[i], own) for i in rows]
        found |= dict(
            zip(rows, _score(engine, edited, [pairs[i][1] for i in rows], own), strict=True)
        )
    return [found[i] for i in range(len(pairs))]


def _edited(prompt: _Given, actuator: Actuator) -> _Given:
    if not isinstance(prompt, Tokens):
        return actuator.edit(prompt)
    if actuator.place == "prompt":
        raise SettingError(
            "likelihoods: an action that edits the conversation cannot act on a prompt given as "
            "tokens"
        )
    return prompt


def _check(actuator: Actuator) -> None:
    if not actuator.uniform:
        raise SettingError(
            f"likelihoods: this switch's action, {actuator.kind}, does not act alike on every "
            "token and request"
        )


def _fired(
    engine: TransformersEngine, conversations: Sequence[_Given], switch: Switch | None
) -> list[bool]:
    """The gate's decision on each conversation; equal ones are asked once."""
    if switch is None:
        return [False] * len(conversations)
    if switch.gate.answers:
        raise SettingError(
            "likelihoods: the gate waits for the end of the model's thinking, and a given reply "
            "has none"
        )
    distinct = list(dict.fromkeys(conversations))
    replies = engine.generate(
        distinct, switch, max_new_tokens=switch.gate.pilot + 1, do_sample=False
    )
    decided = {c: r.decision.fired for c, r in zip(distinct, replies, strict=True)}
    return [decided[c] for c in conversations]


def _score(
    engine: TransformersEngine,
    prompts: Sequence[_Given],
    replies: Sequence[str],
    actuator: Actuator,
) -> list[Likelihood]:
    lm = engine.lm
    tails = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in replies]
    heads = lm.encode(list(prompts), room=max(map(len, tails), default=0)) if prompts else []
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Likelihood] = {}
    with lm.lock, torch.no_grad():
        for start in range(0, len(order), engine.batch_size):
            part = order[start : start + engine.batch_size]
            with _acting(lm, actuator, len(part)):
                logits = _logits(lm, [rows[i] for i in part])
            for place, i in enumerate(part):
                found[i] = _likelihood(logits[place, : len(rows[i])], tails[i])
    return [found[i] for i in range(len(rows))]


def _logits(lm: LanguageModel, rows: Sequence[list[int]]) -> Tensor:
    """``[b, t, V]`` of rows padded on the right, which later tokens alone would see."""
    width = max(map(len, rows))
    ids = torch.tensor(
        [row + [lm.pad_token_id] * (width - len(row)) for row in rows], device=lm.device
    )
    mask = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=lm.device
    )
    logits: Tensor = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def _likelihood(logits: Tensor, tail: Sequence[int]) -> Likelihood:
    """Of the last ``len(tail)`` tokens of one row's logits ``[t, V]``."""
    if not tail:
        return Likelihood(0.0, True)
    log_probs = logits[-len(tail) - 1 : -1].float().log_softmax(-1)
    targets = torch.tensor(tail, device=log_probs.device)
    each = log_probs.gather(1, targets[:, None])[:, 0]
    return Likelihood(float(each.sum()), bool((log_probs.argmax(-1) == targets).all()))


@contextmanager
def _acting(lm: LanguageModel, actuator: Actuator, rows: int) -> Iterator[None]:
    """An actuator in force on every row while the block of code runs; prompt edits have been made
    before."""
    head = actuator.head
    second: AbstractContextManager[object] = nullcontext()
    if head is not None:
        second = _second_head(lm, head.to(lm.head_device, lm.head_dtype))
    with second, acting(lm, actuator, [actuator.strength_on(True, None)] * rows):
        yield


@contextmanager
def _second_head(lm: LanguageModel, head: HeadActuator) -> Iterator[None]:
    def swap(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        b, t, d = args[0].shape
        return head.apply(output.flatten(0, 1), args[0].reshape(b * t, d)).view_as(output)

    handle = lm.parts.head.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()
