"""What every engine offers: prompts and a switch in, replies with decisions out.

Fitting and methods know engines by this contract alone; the engines themselves stand in
:mod:`safeswitch.engines`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

from safeswitch.activations.states import Activations
from safeswitch.core.types import Prompt, ReadPoint, Reply
from safeswitch.switch.switch import Switch

if TYPE_CHECKING:
    from safeswitch.models.language_model import LanguageModel


class GenerationOptions(TypedDict, total=False):
    """Options of :meth:`Engine.generate` that every back end knows; each takes more of its own.

    Args:
        max_new_tokens: Longest reply, on both sides of the switch; for all prompts or for each.
        seed: Sampling seed: prompt i gets ``seed + i``, or one is given per prompt.
        stop_strings: Strings that end a reply.
        do_sample: Sample; False decodes greedily.
        temperature: Of sampling.
        top_p: Of sampling.
        top_k: Of sampling.
        eos_token_id: Token or tokens that end a reply, in place of the model's own.
        repetition_penalty: Above 1 makes tokens that have occurred less likely.
        strength: Of the switch's steering on requests that fire, in place of its own.
        progress: Called with the number of replies finished since the last call.
        show_thinking: Whether text holds the model's thinking.
        thinking_budget: Tokens after which thinking is made to end.
    """

    max_new_tokens: int | Sequence[int]
    seed: int | Sequence[int] | None
    stop_strings: str | Sequence[str]
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    eos_token_id: int | list[int]
    repetition_penalty: float
    strength: float | Sequence[float] | None
    progress: Callable[[int], None] | None
    show_thinking: bool
    thinking_budget: int | None


class Engine(ABC):
    """Runs prompts through a model under a switch."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """One reply per prompt, in order; without a switch the untouched model answers.

        Args:
            prompts: Texts, message lists or examples.
            switch: What to read, how to decide, what to do.
            options: See :class:`GenerationOptions`, and what else the back end takes.
        """


class ReadingEngine(Engine):
    """An engine that also gives the hidden states behind its replies, which is what fitting
    needs."""

    lm: LanguageModel

    @abstractmethod
    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """The untouched model's greedy replies, and states at ``points``.

        Args:
            prompts: n texts, message lists or examples.
            points: What to read.
            max_new_tokens: Longest reply; 0 gives no replies and reads prompts alone.
            progress: Called with the number of prompts done since the last call.

        Returns:
            n replies (none for ``max_new_tokens`` of 0), and activations whose states are ``[n,
            d]`` float32 on the host, d being the model's width.
        """


@dataclass(frozen=True)
class EngineFacts:
    """What an engine runs, for the record of a run and for resuming it.

    Args:
        model_id: What the model is called.
        fingerprint: Of its weights; its name where they cannot be seen.
        revision: Of the model on the hub.
        chat_template: Jinja text given in place of the model's own; None where none was.
        dtype: Of the weights, in words; None where it cannot be seen.
        device: Where the model is; None where its memory is not this process's.
        num_layers: Blocks; None where they cannot be seen.
        context_length: Most tokens of prompt and reply; None where it is not known.
        chunk: Requests that it is given at once.
        runs_in: Back end: ``transformers``, ``vllm``, or a server's address.
    """

    model_id: str
    fingerprint: str
    chunk: int
    revision: str | None = None
    chat_template: str | None = None
    dtype: str | None = None
    device: str | None = None
    num_layers: int | None = None
    context_length: int | None = None
    runs_in: str = "transformers"


class MeasuredEngine(ReadingEngine):
    """An engine that says what it runs, so that benchmarks can be run on it."""

    @property
    @abstractmethod
    def facts(self) -> EngineFacts:
        """Of the model and of how it is run."""


class Around(ReadingEngine):
    """An engine around an engine: it passes everything on, and what derives from it changes one
    thing.

    Args:
        inner: What generates.
    """

    def __init__(self, inner: ReadingEngine) -> None:
        self.inner = inner

    @property
    def lm(self) -> LanguageModel:  # type: ignore[override]
        """The inner engine's, which only what reads states asks for."""
        return self.inner.lm

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """As the inner engine's."""
        return self.inner.generate(prompts, switch=switch, **options)

    def collect(
        self,
        prompts: Sequence[Prompt],
        points: Sequence[ReadPoint],
        *,
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[Reply], Activations]:
        """As the inner engine's: the untouched model, with nothing around it."""
        return self.inner.collect(prompts, points, max_new_tokens=max_new_tokens, progress=progress)
