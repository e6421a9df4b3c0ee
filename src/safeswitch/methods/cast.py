"""``cast``: a behaviour vector is added where a condition holds (CAST, arXiv 2409.05907, sections 3
and 4).

Condition: ``sim(h, proj_c h)``, that is ``|cos(h, c)|``, of the mean state h over all prompt
    tokens, ``[d]``; c is the first
principal direction of the requests of a category against the rest, layer and side chosen by F1.
Categories may be joined by a rule: ``rule="fraud or (weapons and not medicine)"``; the default is
one condition, ``unsafe``, over all categories. The threshold of the published grid search (best F1)
decides inside the rule; the gate's own threshold, on the rule's margin, is then set for the
FPR budget on ordinary calibration requests, unless ``published`` keeps the rule as it is.

Behaviour: the first principal direction of states at the tokens of refusals against compliance
    behind the same prompts
(``[d]`` in each of the layers between 47 and 72 % of the depth: 15 to 23 of 32), added at every
position with a strength chosen on validation (1.5 in the paper's example). Flagged requests are
read anew, steered. Weakness: conditions on mean states overfire on tasks far from their fitting
data (arXiv 2409.05907's gate on mathematics). Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safeswitch.activations.record import prompt_sequences, record
from safeswitch.core.deprecated import renamed
from safeswitch.core.errors import FitError
from safeswitch.core.types import Position, ReadPoint
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.directions import inner_layers, pair_directions
from safeswitch.methods.fitting import best, calibrated
from safeswitch.models.language_model import LanguageModel
from safeswitch.probers.condition import (
    WHOLE,
    Condition,
    ConditionProber,
    fit_condition,
    mean_states,
    plain_name,
)
from safeswitch.switch.actuators.base import Actuator, Steering
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate, Stage

REFUSALS: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
)
COMPLIANCE: tuple[str, ...] = (
    "Sure, I can help with that. Here is how.",
    "Of course, here are the steps for this.",
)


@METHODS.add("cast")
@renamed("shares", "multiples")
@dataclass(frozen=True)
class Cast(Method):
    """Conditional activation steering.

    Args:
        rule: Names of categories (lower case, ``_`` for other characters) or ``unsafe``, joined by
            and, or, not.
        published: Keep the rule's own thresholds instead of setting one for the budget.
        requests: Most requests that each vector comes from.
        multiples: Strengths that are tried, in mean gaps between refusals and compliance along the
            vectors.
    """

    rule: str = "unsafe"
    published: bool = False
    requests: int = 400
    multiples: tuple[float, ...] = (0.5, 1.0, 2.0)
    name: ClassVar[str] = "cast"
    tags: ClassVar[Tags] = Tags(trains=True, conditional=True, per_row=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """The rule over the conditions that it names.

        Raises:
            FitError: a category without training requests.
            SettingError: a rule that cannot be read.
        """
        prober = ConditionProber.of(self._conditions(engine.lm, data), self.rule)
        if self.published:
            return Gate(stage1=Stage(prober, 0.5), fail=self.settings.fail)
        return calibrated(engine, prober, data, self.settings)

    def _conditions(self, lm: LanguageModel, data: Data) -> list[Condition]:
        """For each name that the rule has, the layer with the best F1."""
        examples = data["train"]
        kinds = {"unsafe": torch.tensor([e.unsafe for e in examples])}
        for category in sorted({e.category for e in examples if e.unsafe and e.category}):
            kinds[plain_name(category)] = torch.tensor(
                [e.unsafe and e.category == category for e in examples]
            )
        wanted = [name for name in kinds if name in set(_words(self.rule))]
        if not wanted:
            raise FitError(
                f"cast: the rule {self.rule!r} names no category of the training part: "
                f"{', '.join(kinds)}"
            )
        points = [ReadPoint(layer, WHOLE) for layer in inner_layers(lm, 0.15, 0.8)]
        rows = _spread(examples, self.requests)
        activations = record(
            lm, *prompt_sequences(lm, [examples[i] for i in rows])[:2], points, dtype=torch.float32
        )
        found = []
        for name in wanted:
            truth = kinds[name][rows]
            tried = [
                fit_condition(name, p.layer, mean_states(activations, p), truth) for p in points
            ]
            quality = [
                _f1(c.margin(mean_states(activations, p)) > 0, truth)
                for c, p in zip(tried, points, strict=True)
            ]
            found.append(tried[max(range(len(tried)), key=quality.__getitem__)])
        return found

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The behaviour vectors at the best strength."""
        lm = engine.lm
        layers = inner_layers(lm, 0.47, 0.72)
        differences = suffix_differences(lm, data, layers, self.requests // 4)
        vectors = pair_directions(differences)
        gap = float((differences.mean(1) * vectors).sum(1).mean())
        tried = [Steering(layers, vectors, multiple * gap) for multiple in self.multiples]
        return best(engine, gate, tried, data, self.complied, self.settings)


def suffix_differences(
    lm: LanguageModel, data: Data, layers: tuple[int, ...], requests: int
) -> Tensor:
    """States at the tokens of a refusal minus those of compliance, behind the same prompts, means
    over tokens ``[L, m, d]``."""
    chosen = [data["train"][i] for i in _spread(data["train"], requests)]
    prompts, lengths, _ = prompt_sequences(lm, chosen)
    pairs = []
    for texts in (REFUSALS, COMPLIANCE):
        suffixes = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        rows = [[*row, *suffixes[i % len(suffixes)]] for i, row in enumerate(prompts)]
        count = min(map(len, suffixes))
        points = [
            ReadPoint(layer, Position("pilot", t)) for t in range(1, count + 1) for layer in layers
        ]
        activations = record(lm, rows, lengths, points, dtype=torch.float32)
        states = torch.stack([activations.at(point) for point in points])
        pairs.append(states.reshape(count, len(layers), *states.shape[1:]).mean(0))
    return pairs[0] - pairs[1]


def _words(rule: str) -> list[str]:
    return rule.replace("(", " ").replace(")", " ").split()


def _spread(examples: Sized, most: int) -> list[int]:
    """Up to ``most`` indices, evenly spread."""
    count = len(examples)
    return list(range(0, count, max(1, -(-count // most))))


def _f1(flagged: Tensor, truth: Tensor) -> float:
    return 2 * int((flagged & truth).sum()) / max(1, int(flagged.sum()) + int(truth.sum()))
