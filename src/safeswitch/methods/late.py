"""Late detection: ``note`` and ``header`` read the reply so far again with tokens appended, every
few tokens and at its end.

- ``note`` (SafeProbing, arXiv 2601.10543): the appended tokens say that this is illegal and
  unethical; a reply behind which the model finds that likely (mean negative log-likelihood of the
  last 4 tokens, score ``2 / (1 + exp(NLL / 2))``) is withdrawn. Nothing is trained. The published
  bar is NLL 2; here it is set for the false positive rate (FPR) budget.
- ``header`` (any-depth alignment, arXiv 2510.18081, its linear-probe form): the tokens are those
  that open a reply in the chat template; a linear prober reads the last one's state, and tells
  replies that help with harm from others.

Published readings are at random steps (10-20 % of them); here they are evenly spaced, so that a
reply is judged alike in any batch. Both act by a fixed refusal, or, under a ``+``, by any action.
Cost: one more pass over request and reply so far for each reading; a stream shows nothing before
the end. Weakness: a note that the model was never trained on says little in a small model. Know
nothing of engines.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safeswitch.activations.reread import reread
from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError
from safeswitch.core.types import Example, ReadPoint
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.fitting import REFUSAL, calm
from safeswitch.models.chat import ChatEncoder
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.appended import APPENDED, AppendingProber, LikelihoodProber
from safeswitch.probers.base import Prober
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.probers.linear import LinearProber
from safeswitch.switch.actuators.base import Actuator, Canned
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate, Stage

NOTE = " Note that this is illegal and unethical"


@dataclass(frozen=True, eq=False)
class _Prefixes:
    """What a late reading sees of the base model's replies: m prefixes of n requests.

    Args:
        rows: Token ids of request and reply so far.
        owners: ``[m]``: the request of each.
        harmful: ``[m]`` bool: unsafe, and complied with in the end.
        unsafe: ``[n]`` bool.
    """

    rows: list[list[int]]
    owners: Tensor
    harmful: Tensor
    unsafe: Tensor


@dataclass(frozen=True)
class _Late(Method):
    """A gate that reads late.

    Args:
        every: Reply tokens between two readings.
        text: The fixed refusal.
    """

    every: int = 8
    text: str = REFUSAL
    tags: ClassVar[Tags] = Tags(trains=True, conditional=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """The reading with its threshold on each ordinary calibration request's highest score."""
        prober = self.prober(engine, data)
        read = self.prefixes(engine, calm(data))
        scores = prober.score(self.read(engine.lm, prober, read))
        highest = torch.zeros(len(read.unsafe)).scatter_reduce(0, read.owners, scores.cpu(), "amax")
        bar = conformal_threshold(highest, self.settings.budget).value
        return Gate(
            late=Stage(prober, min(1.0, max(0.0, bar))),
            late_every=self.every,
            fail=self.settings.fail,
        )

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The fixed refusal."""
        return Canned(self.text)

    @abstractmethod
    def prober(self, engine: ReadingEngine, data: Data) -> Prober:
        """What reads."""

    def prefixes(self, engine: ReadingEngine, examples: Sequence[Example]) -> _Prefixes:
        """Prefixes of the base model's replies."""
        replies = engine.generate(
            examples, max_new_tokens=self.settings.max_new_tokens, do_sample=False
        )
        prompts = engine.lm.encode(list(examples))
        ends = {engine.lm.tokenizer.eos_token_id}
        rows, owners, harmful = [], [], []
        for i, (e, prompt, reply) in enumerate(zip(examples, prompts, replies, strict=True)):
            body = [t for t in reply.token_ids if t not in ends]
            wrong = e.unsafe and self.complied(e, reply.text)
            for t in [*range(self.every, len(body), self.every), *([len(body)] if body else [])]:
                rows.append([*prompt, *body[:t]])
                owners.append(i)
                harmful.append(wrong)
        if not rows:
            raise FitError(f"{self.name}: the model's replies are all empty")
        return _Prefixes(
            rows,
            torch.tensor(owners),
            torch.tensor(harmful),
            torch.tensor([e.unsafe for e in examples]),
        )

    @staticmethod
    def read(lm: LanguageModel, prober: Prober, prefixes: _Prefixes) -> Activations:
        """What ``prober`` sees of them."""
        return reread(lm, prefixes.rows, prober.appended, prober.points)


@METHODS.add("note")
@dataclass(frozen=True)
class Note(_Late):
    """The likelihood of a note.

    Args:
        note: Text that is appended.
        tokens: Tokens of it that are counted, from its end.
    """

    note: str = NOTE
    tokens: int = 4
    name: ClassVar[str] = "note"

    def prober(self, engine: ReadingEngine, data: Data) -> Prober:
        """The training-free reading."""
        lm = engine.lm
        ids = lm.tokenizer(self.note, add_special_tokens=False)["input_ids"]
        return AppendingProber(LikelihoodProber(lm.num_layers, min(self.tokens, len(ids))), ids)


@METHODS.add("header")
@dataclass(frozen=True)
class Header(_Late):
    """A linear prober at the reply's header, put in again.

    Args:
        depth: Fraction of the depth at which it reads.
    """

    depth: float = 0.75
    name: ClassVar[str] = "header"

    def prober(self, engine: ReadingEngine, data: Data) -> Prober:
        """Fitted on prefixes of replies to training requests.

        Raises:
            FitError: a chat template without a header, or replies of one kind only.
        """
        lm = engine.lm
        ids = ChatEncoder(lm.tokenizer, lm.model_id, lm.chat_template).header()
        if not ids:
            raise FitError(
                f"header: the chat template of {lm.model_id} opens replies with no token of their "
                "own"
            )
        layer = max(1, round(self.depth * lm.num_layers))
        prober = AppendingProber(LinearProber(ReadPoint(layer, APPENDED)), ids)
        train, held = (self.prefixes(engine, data[part]) for part in ("train", "validation"))
        validation = (self.read(lm, prober, held), held.harmful)
        both = bool(held.harmful.any()) and not bool(held.harmful.all())
        activations = self.read(lm, prober, train)
        return prober.fit(
            activations,
            train.harmful,
            validation=validation if both else None,
            seed=self.settings.seed,
        )
