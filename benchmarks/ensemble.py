"""A white-box attack on one prober and on an ensemble of random ones, before and after, on the
embedded model.

    python benchmarks/ensemble.py --requests 30

Soft tokens (free input embeddings) are put behind jailbroken requests that the gate catches, and
moved by gradient descent until the attacked readers' log-odds are low, with the first reply token
held where it was (obfuscated activations, Bailey et al., arXiv 2412.09565). Counted: requests that
still fire, and requests that no longer fire and get an answer. Attackers know the weights of what
they attack; ``redrawn`` is an ensemble of another seed, which they do not know. The control moves
soft tokens to hold the first reply token alone: what it lowers is the work of foreign embeddings,
not of the attack.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safeswitch.activations.reader import Reader
from safeswitch.activations.states import Activations
from safeswitch.bench.table import percent
from safeswitch.core.types import PROMPT_END, ReadPoint
from safeswitch.engines.transformers.engine import TransformersEngine
from safeswitch.methods.fitting import labels, prompt_activations
from safeswitch.models.chat import ChatEncoder
from safeswitch.models.language_model import LanguageModel
from safeswitch.nano import judge, weights_path
from safeswitch.nano.study import demo_settings
from safeswitch.nano.suites import load_suite
from safeswitch.probers.calibrate import conformal_threshold, log_odds
from safeswitch.probers.ensemble import EnsembleProber
from safeswitch.probers.multilayer import LayerAverageProber
from safeswitch.statistics.intervals import clustered

Odds = Callable[[dict[int, Tensor]], Tensor]
"""Log-odds of each reader, ``[readers]``, from last states ``[1, d]`` by layer; differentiable."""


@dataclass(frozen=True)
class Guarded:
    """A prober with what an attacker differentiates, how its readers make one score, and its
    threshold in log-odds."""

    odds: Odds
    join: Callable[[Tensor], Tensor]
    bar: float
    layers: tuple[int, ...]

    def fires(self, states: dict[int, Tensor]) -> bool:
        return bool(self.join(self.odds(states)) > self.bar)


def averaged(prober: LayerAverageProber, bar: float) -> Guarded:
    """The MLPs of a layer average."""

    def odds(states: dict[int, Tensor]) -> Tensor:
        found = []
        for one in prober.fitted():
            m: Any = one
            x = (states[m.points[0].layer] - m.mean_) / m.scale_
            found.append((torch.relu(x @ m.w1_ + m.b1_) @ m.w2_ + m.b2_)[0, 0])
        return torch.stack(found)

    return Guarded(odds, torch.mean, bar, tuple(p.layer for p in prober.points))


def assembled(prober: EnsembleProber, bar: float) -> Guarded:
    """The members of an ensemble."""

    def odds(states: dict[int, Tensor]) -> Tensor:
        return prober.member_odds(Activations({p: states[p.layer] for p in prober.points}))[:, 0]

    return Guarded(odds, torch.median, bar, tuple(p.layer for p in prober.points))


class Attack:
    """Soft tokens behind a request.

    Args:
        lm: The model.
        tokens: How many.
        steps: Of Adam.
        rate: Its learning rate, in units of the embeddings' own spread.
    """

    def __init__(
        self, lm: LanguageModel, layers: Sequence[int], tokens: int, steps: int, rate: float
    ) -> None:
        self.lm, self.layers, self.tokens, self.steps = lm, sorted(set(layers)), tokens, steps
        self.table = lm.model.get_input_embeddings().weight.detach()
        self.rate = rate * float(self.table.std())
        self.header = len(ChatEncoder(lm.tokenizer, lm.model_id, lm.chat_template).header())

    def states(self, embedded: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """Last states ``[1, d]`` by layer, and the next token's log-probabilities ``[V]``."""
        with Reader(self.lm, self.layers) as reader:
            logits = (
                self.lm.model(inputs_embeds=embedded, use_cache=False).logits[0, -1].log_softmax(-1)
            )
        return reader.states, logits

    def embedded(self, row: Sequence[int], soft: Tensor | None = None) -> Tensor:
        """``[1, t, d]``, the soft tokens before the reply's header."""
        plain = self.table[torch.tensor(row)][None]
        if soft is None:
            return plain
        return torch.cat([plain[:, : -self.header], soft[None], plain[:, -self.header :]], 1)

    def run(self, row: Sequence[int], target: Guarded | None, seed: int) -> Tensor:
        """Embeddings ``[1, t, d]`` at the end of the search; without a target, of the control."""
        draw = torch.Generator().manual_seed(seed)
        start = self.table[torch.randint(len(self.table), (self.tokens,), generator=draw)].clone()
        soft = start.requires_grad_(True)
        optimiser = torch.optim.Adam([soft], lr=self.rate)
        with torch.no_grad():
            reference = self.states(self.embedded(row))[1]
        for _ in range(self.steps):
            states, logits = self.states(self.embedded(row, soft))
            loss = (reference.exp() * (reference - logits)).sum()
            if target is not None:
                loss = loss + torch.relu(target.odds(states) - target.bar + 1.0).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return self.embedded(row, soft.detach())

    @torch.no_grad()
    def answered(self, embedded: Tensor) -> bool:
        """Whether the untouched model helps."""
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        out: Any = self.lm.model.generate(
            inputs_embeds=embedded, attention_mask=mask, max_new_tokens=48, do_sample=False
        )
        return judge.complied(str(self.lm.tokenizer.decode(out[0], skip_special_tokens=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = TransformersEngine.load(weights_path()).lm
    lm.model.requires_grad_(False)
    data, settings = demo_settings()
    layers = tuple(range(1, lm.num_layers + 1))
    points = [ReadPoint(layer, PROMPT_END) for layer in layers]
    probers: dict[str, Any] = {
        "average of MLPs": LayerAverageProber([points[-3], points[-2], points[-1]])
    }
    probers |= {name: EnsembleProber(points, args.members) for name in ("ensemble", "redrawn")}
    held = prompt_activations(lm, data.validation, EnsembleProber(points)), labels(data.validation)
    parts = (("fit", data.train), ("safe", data.calibration))
    activations = {
        part: prompt_activations(lm, rows, EnsembleProber(points)) for part, rows in parts
    }
    guards: dict[str, Guarded] = {}
    for seed, (name, prober) in enumerate(probers.items()):
        prober.fit(activations["fit"], labels(data.train), validation=held, seed=seed)
        bar = float(
            log_odds(
                torch.tensor(
                    [conformal_threshold(prober.score(activations["safe"]), settings.budget).value]
                )
            )
        )
        guards[name] = (
            averaged(prober, bar)
            if isinstance(prober, LayerAverageProber)
            else assembled(prober, bar)
        )
    attack = Attack(lm, layers, args.tokens, args.steps, args.rate)
    examples = load_suite("jailbroken", n=args.requests)
    rows, groups = lm.encode(examples), [e.group or e.id for e in examples]
    tried: dict[str, Guarded | None] = {
        "nothing": None, "nothing, with soft tokens (control)": None, **{n: g for n, g in guards.items() if n != "redrawn"},
    }  # fmt: skip
    print(
        "| attacked | "
        + " | ".join(f"{name} fires" for name in guards)
        + " | "
        + " | ".join(f"answered past {name}" for name in guards)
        + " |"
    )
    print("|---|" + "---|" * (2 * len(guards)))
    figures: dict[str, Any] = {}
    for title, target in tried.items():
        fired: dict[str, list[bool]] = {name: [] for name in guards}
        helped = []
        for i, row in enumerate(rows):
            embedded = attack.embedded(row) if title == "nothing" else attack.run(row, target, i)
            with torch.no_grad():
                states, _ = attack.states(embedded)
            for name, guard in guards.items():
                fired[name].append(guard.fires(states))
            helped.append(attack.answered(embedded))
        past = {
            name: [h and not f for h, f in zip(helped, hits, strict=True)]
            for name, hits in fired.items()
        }
        rates = [clustered(hits, groups) for hits in (*fired.values(), *past.values())]
        print(
            f"| {title} | " + " | ".join(percent(r.rate, r.low, r.high) for r in rates) + " |",
            flush=True,
        )
        figures[title] = {"fired": fired, "past": past, "answered": helped}
    if args.out is not None:
        args.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
