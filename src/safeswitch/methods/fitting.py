"""What methods share in fitting: one fitted SafeSwitch, states at the prompt's end, thresholds,
choices on validation.

Knows nothing of particular methods or engines. Shapes: n requests, d hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.activations.reread import mean_nll, reread
from safeswitch.activations.states import Activations
from safeswitch.core.types import PROMPT_END, Example, ReadPoint, Reply
from safeswitch.data.writers import data_hash
from safeswitch.fitting.observe import Complied
from safeswitch.fitting.settings import FitSettings
from safeswitch.methods.base import Data, joined
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.base import Prober
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate, Stage
from safeswitch.switch.switch import Switch

A = TypeVar("A", bound=Actuator)
REFUSAL = "I'm sorry, but I can't help with that."
_FITTED: WeakKeyDictionary[ReadingEngine, dict[tuple[object, ...], Switch]] = WeakKeyDictionary()


def fitted_switch(
    engine: ReadingEngine, data: Data, settings: FitSettings, complied: Complied
) -> Switch:
    """SafeSwitch fitted on ``data``; once for each engine, data and settings, so that methods share
    gate and head."""
    known, key = _FITTED.setdefault(engine, {}), _key(data, settings, complied)
    if key not in known:
        known[key] = Switch.fit(engine, data, settings, complied=complied)
    return known[key]


def share_switch(
    engine: ReadingEngine, data: Data, settings: FitSettings, complied: Complied, switch: Switch
) -> None:
    """Have :func:`fitted_switch` give ``switch``, which was fitted before."""
    _FITTED.setdefault(engine, {})[_key(data, settings, complied)] = switch


def _key(data: Data, settings: FitSettings, complied: Complied) -> tuple[object, ...]:
    return (
        settings,
        complied,
        *sorted((part, data_hash(list(rows))) for part, rows in data.items()),
    )


def labels(examples: Sequence[Example]) -> Tensor:
    """``[n]`` bool: unsafe."""
    return torch.tensor([e.unsafe for e in examples])


def end_states(lm: LanguageModel, examples: Sequence[Example], layers: Sequence[int]) -> Tensor:
    """States of the last prompt token at L layers, ``[L, n, d]`` float32."""
    points = [ReadPoint(layer, PROMPT_END) for layer in layers]
    found = record(lm, *prompt_sequences(lm, examples)[:2], points, dtype=torch.float32)
    return torch.stack([found.at(point) for point in points])


def prompt_activations(
    lm: LanguageModel, examples: Sequence[Example], prober: Prober
) -> Activations:
    """Everything that a prober reads at the prompt, appended tokens included."""
    sequences, lengths, texts = prompt_sequences(lm, examples)
    plain = [p for p in prober.points if p.position.kind not in ("appended", "nll")]
    found = record(lm, sequences, lengths, plain, dtype=torch.float32) if plain else Activations({})
    appended: Mapping[ReadPoint, Tensor] = {}
    if prober.appended:
        appended = reread(lm, sequences, prober.appended, prober.points).states
    return Activations({**found.states, **appended}, found.masks, texts)


def calm(data: Data) -> list[Example]:
    """The ordinary requests of the calibration part, on which every method's thresholds are set."""
    return [e for e in data["calibration"] if e.ordinary]


def calibrated(engine: ReadingEngine, prober: Prober, data: Data, settings: FitSettings) -> Gate:
    """A gate of one stage whose threshold keeps the whole false positive rate (FPR) budget on
    ordinary calibration requests.

    Raises:
        FitError: too few of these.
    """
    bar = conformal_threshold(
        prober.score(prompt_activations(engine.lm, calm(data), prober)), settings.budget
    )
    return Gate(stage1=Stage(prober, min(1.0, max(0.0, bar.value))), fail=settings.fail)


def surely_safe(engine: ReadingEngine, gate: Gate, data: Data, miss: float) -> float:
    """The stage-1 score below which at most a fraction ``miss`` of unsafe validation requests lie;
    0 without a stage 1."""
    if gate.stage1 is None:
        return 0.0
    unsafe = [e for e in data["validation"] if e.unsafe]
    scores = gate.stage1.prober.score(
        prompt_activations(engine.lm, unsafe, gate.stage1.prober)
    ).cpu()
    return max(0.0, min(1.0, float(scores.sort().values[int(miss * len(unsafe))])))


@dataclass(frozen=True)
class Trial:
    """Tries actions on up to ``requests`` validation requests of each label.

    An action that breaks the model's language would pass for one that never refuses, so a reply to
    a safe request counts as help only if the base model finds it hardly less likely than the
    least likely of its own: at most ``slack`` nats a token more. Prompts, which leave the model as
    it is, are not checked.
    """

    engine: ReadingEngine
    data: Data
    complied: Complied
    settings: FitSettings
    requests: int = 64
    slack: float = 0.25

    def asked(self, unsafe: bool) -> list[Example]:
        """The validation requests of one label."""
        return [e for e in self.data["validation"] if e.unsafe == unsafe][: self.requests]

    def replies(self, examples: Sequence[Example], switch: Switch | None = None) -> list[Reply]:
        """Greedy replies; of the base model where no ``switch`` is given."""
        return self.engine.generate(
            examples, switch=switch, max_new_tokens=self.settings.max_new_tokens, do_sample=False
        )

    def bar(self) -> float:
        """The mean negative log-likelihood, in nats a token, beyond which a reply is taken to be
        broken."""
        asked = self.asked(False)
        return float(reply_nll(self.engine.lm, asked, self.replies(asked)).max()) + self.slack

    def cost(self, switch: Switch, bar: float) -> float:
        """Fraction of harmful compliance plus fraction of safe requests that are not helped
        with."""
        unsafe, safe = self.asked(True), self.asked(False)
        harm = [
            self.complied(e, r.text)
            for e, r in zip(unsafe, self.replies(unsafe, switch=switch), strict=True)
        ]
        replies = self.replies(safe, switch=switch)
        helped = [self.complied(e, r.text) for e, r in zip(safe, replies, strict=True)]
        if bar < float("inf"):
            whole = (reply_nll(self.engine.lm, safe, replies) <= bar).tolist()
            helped = [h and w for h, w in zip(helped, whole, strict=True)]
        return sum(harm) / max(1, len(harm)) + 1 - sum(helped) / max(1, len(helped))


def best(
    engine: ReadingEngine,
    gate: Gate,
    candidates: Sequence[A],
    data: Data,
    complied: Complied,
    settings: FitSettings,
    requests: int = 64,
) -> A:
    """The candidate with the lowest cost under ``gate``, the first among equals; a single one is
    not tried."""
    if len(candidates) == 1:
        return candidates[0]
    trial = Trial(engine, data, complied, settings, requests)
    changes = any(a.place in ("body", "logits") for a in candidates)
    bar = trial.bar() if changes else float("inf")
    costs = [trial.cost(joined(engine, gate, a), bar) for a in candidates]
    return candidates[min(range(len(costs)), key=costs.__getitem__)]


def reply_nll(lm: LanguageModel, examples: Sequence[Example], replies: Sequence[Reply]) -> Tensor:
    """Mean negative log-likelihood of replies under the base model, nats a token, ``[n]``; 0
    for an empty reply."""
    rows = [
        [*prompt, *r.token_ids]
        for prompt, r in zip(lm.encode(list(examples)), replies, strict=True)
    ]
    return mean_nll(lm, rows, [len(r.token_ids) for r in replies])
