"""``scans``: two-sided steering by how "Sure" moves the states (SCANS, arXiv 2408.11491, section
3).

1. ``v_l``: mean last state of unsafe minus safe requests, of length 1, ``[d]``.
2. Layers: the run of neighbours (10 of 32 in the paper, the same fraction here) whose v_l, put
   through the LM head, ranks words of refusal highest.
3. Gate: ``s = mean_l cos(t_l, mean of the anchors' t_l)``, ``t_l = h_l(prompt's end) -
   h_l("Sure")``, over the layers from the first steered one up. The paper's thresholds (0.60 to
   0.75) differ by data set; here it is the conformal threshold for the FPR budget on
   ordinary calibration requests.
4. ``h_l <- h_l + sigma * alpha * v_l`` from the prompt's last token on, sigma +1 where flagged and
   else -1. alpha (3.5 for Llama 2) is chosen on validation among multiples of the mean distance
   between both kinds.

``safe_scans`` leads away from refusal only where stage 1 is surely below what unsafe validation
requests score (all but ``settings.miss_budget`` of them), and leaves those in between alone. Cost:
one more pass over the prompt, and flagged or relieved requests read anew. Weakness: as published,
everything that the gate misses is led *away* from refusal (see arXiv 2602.06256); relieved requests
are not watched any more. Knows nothing of engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from safeswitch.core.deprecated import renamed
from safeswitch.core.types import Example
from safeswitch.methods.base import METHODS, Data, Method, Tags
from safeswitch.methods.directions import best_run, inner_layers, mean_difference, refusal_alignment
from safeswitch.methods.fitting import (
    best,
    calibrated,
    end_states,
    labels,
    prompt_activations,
    surely_safe,
)
from safeswitch.probers.appended import AppendingProber, TransitionProber
from safeswitch.switch.actuators.base import Steering
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate

LAYER_SHARE = 10 / 32


@METHODS.add("scans")
@renamed("shares", "multiples")
@dataclass(frozen=True)
class Scans(Method):
    """Steered towards refusal where flagged, away from it elsewhere.

    Args:
        word: What is appended.
        anchors: Requests of each kind that directions and reference come from.
        multiples: Strengths that are tried, in mean distances between both kinds.
    """

    word: str = "Sure"
    anchors: int = 64
    multiples: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    name: ClassVar[str] = "scans"
    tags: ClassVar[Tags] = Tags(trains=True, conditional=True, per_row=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """The likeness of transitions."""
        lm = engine.lm
        layers, _ = self._vectors(engine, data)
        appended = lm.tokenizer(self.word, add_special_tokens=False)["input_ids"]
        prober = AppendingProber(TransitionProber(range(layers[0], lm.num_layers)), appended)
        anchors = self._anchors(data)
        prober.fit(prompt_activations(lm, anchors, prober), labels(anchors))
        return calibrated(engine, prober, data, self.settings)

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Steering:
        """The best strength, both ways."""
        (layers, vectors), below = self._vectors(engine, data), self._below(engine, data, gate)
        lengths = vectors.norm(dim=1)
        scale = float(lengths.mean())
        unit = vectors / lengths[:, None]
        tried = [
            Steering(
                layers,
                unit,
                multiple * scale,
                relief=-multiple * scale,
                relief_below=below,
                where="reply",
            )
            for multiple in self.multiples
        ]
        return best(engine, gate, tried, data, self.complied, self.settings)

    def _below(self, engine: ReadingEngine, data: Data, gate: Gate) -> float:
        """Everything that did not fire is led away from refusal."""
        return 1.0

    def _anchors(self, data: Data) -> list[Example]:
        train = data["train"]
        unsafe = [e for e in train if e.unsafe]
        safe = [e for e in train if not e.unsafe]
        return [*unsafe[: self.anchors], *safe[: self.anchors]]

    def _vectors(self, engine: ReadingEngine, data: Data) -> tuple[tuple[int, ...], Tensor]:
        """Safety-critical layers and their differences of means, ``[L, d]``."""
        layers, anchors = inner_layers(engine.lm, 0.0, 1.0), self._anchors(data)
        vectors = mean_difference(end_states(engine.lm, anchors, layers), labels(anchors))
        fits = refusal_alignment(engine.lm, vectors / vectors.norm(dim=1, keepdim=True)).tolist()
        run = best_run(fits, max(1, round(LAYER_SHARE * engine.lm.num_layers)))
        return tuple(layers[i] for i in run), vectors[list(run)]


@METHODS.add("safe_scans")
@dataclass(frozen=True)
class SafeScans(Scans):
    """Away from refusal only where stage 1 is sure."""

    name: ClassVar[str] = "safe_scans"

    def _below(self, engine: ReadingEngine, data: Data, gate: Gate) -> float:
        return surely_safe(engine, gate, data, self.settings.miss_budget)


@METHODS.add("one_sided_scans")
@dataclass(frozen=True)
class OneSidedScans(Scans):
    """Never away from refusal: what the two sides are compared with."""

    name: ClassVar[str] = "one_sided_scans"

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Steering:
        """The same strength and layers without relief."""
        return replace(super().action(engine, data, gate), relief=0.0)
