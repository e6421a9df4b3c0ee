"""STAIR at inference (arXiv 2502.02384, section 3.3): ``best_of_n`` and ``beam`` search for a safe
and helpful reply.

Reward ``R = 2 S + S H``: safe always beats unsafe, and among unsafe replies the more helpful one is
worse. Here ``S = 1 - 2 p`` with p from a prober on the running reply (SafeSwitch's watch), ``H = 2
exp(mean log-likelihood) - 1``, both in [-1, 1]; the paper learns S and H from a rated search tree.
Only in the grey band of the gate, between the stage-1 thresholds of ten times the budget and of the
budget: what is flagged is refused, what is clear is answered at once.

- ``best_of_n``: the greedy reply and n - 1 sampled ones, the highest R wins.
- ``beam``: step by step, each of b beams grows by m sampled steps of ``step`` tokens, the b with
  the highest R stay.

Cost in the grey band: n or b * m times the tokens, each a request to the engine, and a scoring pass
each; how many requests were searched is in ``searched`` of the engine that ``wrap`` gives.
Weakness: an ill-calibrated prober is optimised against by its own search. Know nothing of engines.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from safeswitch.activations.record import record
from safeswitch.activations.reread import mean_nll
from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.types import Position, Prompt, ReadPoint, Reply, Tokens
from safeswitch.methods.base import METHODS, Data, Method, Tags, joined
from safeswitch.methods.fitting import calm, fitted_switch, prompt_activations
from safeswitch.probers.base import Prober
from safeswitch.probers.calibrate import conformal_threshold
from safeswitch.switch.actuators.base import Actuator
from safeswitch.switch.engine import Around, GenerationOptions, ReadingEngine
from safeswitch.switch.gate import Gate
from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class _Search(Method):
    """Search in the grey band.

    Args:
        wider: Multiple of the budget at whose threshold the grey band begins.
        temperature: Of sampling.
    """

    wider: float = 10.0
    temperature: float = 1.0
    tags: ClassVar[Tags] = Tags(trains=True, conditional=True, wraps=True)

    def gate(self, engine: ReadingEngine, data: Data) -> Gate:
        """SafeSwitch's gate with a watch, which search needs as its judge."""
        return fitted_switch(engine, data, replace(self.settings, watch=True), self.complied).gate

    def action(self, engine: ReadingEngine, data: Data, gate: Gate) -> Actuator:
        """The refusal head, for what is flagged."""
        return fitted_switch(
            engine, data, replace(self.settings, watch=True), self.complied
        ).actuator

    def prepare(self, engine: ReadingEngine, data: Data) -> Switch:
        """The fitted switch with the grey band in its record.

        Raises:
            FitError: no watch could be fitted, or there is no stage 1.
        """
        gate = self.gate(engine, data)
        if gate.watch is None or gate.stage1 is None:
            raise FitError(
                f"{self.name}: needs a stage 1 and a watch; no watch can be fitted where no reply "
                "is harmful"
            )
        prober = gate.stage1.prober
        scores = prober.score(prompt_activations(engine.lm, calm(data), prober))
        budget = self.settings.stage_budget
        low, high = (
            conformal_threshold(scores, rate).value
            for rate in (min(0.5, self.wider * budget), budget)
        )
        return joined(engine, gate, self.action(engine, data, gate), {"grey": [low, high]})

    def wrap(self, engine: ReadingEngine) -> ReadingEngine:
        """Search around ``engine``."""
        return Searching(engine, self)

    @abstractmethod
    def search(
        self, judge: RewardModel, prompt: Sequence[int], greedy: Sequence[int], tokens: int
    ) -> list[int]:
        """The reply's tokens for one request; ``greedy`` is what the model says by itself."""


@METHODS.add("best_of_n")
@dataclass(frozen=True)
class BestOfN(_Search):
    """The best of several replies.

    Args:
        n: Replies, the greedy one included.
    """

    n: int = 4
    name: ClassVar[str] = "best_of_n"

    def search(
        self, judge: RewardModel, prompt: Sequence[int], greedy: Sequence[int], tokens: int
    ) -> list[int]:
        """Sample and choose."""
        drawn = (
            judge.sample([list(prompt)], self.n - 1, tokens, self.temperature) if self.n > 1 else []
        )
        candidates = [list(greedy), *drawn]
        return candidates[int(judge.rewards(prompt, candidates).argmax())]


@METHODS.add("beam")
@dataclass(frozen=True)
class Beam(_Search):
    """Beam search over steps.

    Args:
        beams: Beams that stay (b).
        children: Steps that each is grown by (m).
        step: Tokens of a step.
    """

    beams: int = 2
    children: int = 3
    step: int = 8
    name: ClassVar[str] = "beam"

    def search(
        self, judge: RewardModel, prompt: Sequence[int], greedy: Sequence[int], tokens: int
    ) -> list[int]:
        """Grow, judge, keep."""
        beams: list[list[int]] = [[]]
        for start in range(0, tokens, self.step):
            open_ones = [b for b in beams if not judge.ended(b)]
            if not open_ones:
                break
            most = min(self.step, tokens - start)
            grown = judge.sample(
                [[*prompt, *b] for b in open_ones], self.children, most, self.temperature
            )
            longer = [[*open_ones[i // self.children], *tail] for i, tail in enumerate(grown)]
            pool = [b for b in beams if judge.ended(b)] + longer
            order = (
                judge.rewards(prompt, pool)
                .argsort(descending=True, stable=True)[: self.beams]
                .tolist()
            )
            beams = [pool[i] for i in order]
        return beams[0]


@dataclass(frozen=True)
class RewardModel:
    """Samples continuations and gives rewards.

    Args:
        engine: Samples, without a switch.
        prober: Reads the running reply; says how likely it is that the reply helps with harm.
        seed: Of sampling; each continuation's follows from it and the tokens it goes on from, in
            any batch.
    """

    engine: ReadingEngine
    prober: Prober
    seed: int = 0

    def ended(self, reply: Sequence[int]) -> bool:
        """Whether a reply has come to its end token."""
        return bool(reply) and reply[-1] == self.engine.lm.tokenizer.eos_token_id

    def sample(
        self, rows: Sequence[Sequence[int]], count: int, tokens: int, temperature: float
    ) -> list[list[int]]:
        """``count`` continuations of up to ``tokens`` tokens of each row, in order."""
        tokenizer = self.engine.lm.tokenizer
        prompts = [
            Tokens(tuple(row), str(tokenizer.decode(list(row))))
            for row in rows
            for _ in range(count)
        ]
        firsts = [self.seed + zlib.crc32(repr(list(row)).encode()) for row in rows]
        replies = self.engine.generate(
            prompts,
            max_new_tokens=tokens,
            seed=[first + i for first in firsts for i in range(count)],
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=tokenizer.eos_token_id,
        )
        return [list(reply.token_ids) for reply in replies]

    def rewards(self, prompt: Sequence[int], replies: Sequence[Sequence[int]]) -> Tensor:
        """R of each reply so far, ``[n]``; ``-inf`` for an empty one."""
        rows = [[*prompt, *reply] for reply in replies if reply]
        result = torch.full((len(replies),), -torch.inf)
        if rows:
            full = torch.tensor([bool(reply) for reply in replies])
            safety = 1 - 2 * self._unsafe(len(prompt), rows)
            likelihood = -mean_nll(self.engine.lm, rows, [len(row) - len(prompt) for row in rows])
            result[full] = reward(safety, 2 * likelihood.exp() - 1)
        return result

    def _unsafe(self, prompt: int, rows: list[list[int]]) -> Tensor:
        """The prober's score at the last token of each row."""
        states = {}
        for point in self.prober.points:
            ends = [ReadPoint(point.layer, Position("pilot", len(row) - prompt)) for row in rows]
            found = record(
                self.engine.lm,
                rows,
                [prompt] * len(rows),
                tuple(dict.fromkeys(ends)),
                dtype=torch.float32,
            )
            states[point] = torch.stack([found.at(end)[i] for i, end in enumerate(ends)])
        return self.prober.score(Activations(states)).float().cpu().nan_to_num(1.0)


def reward(safety: Tensor, helpfulness: Tensor) -> Tensor:
    """``R = 2 S + S H`` of ``[n]`` and ``[n]`` in [-1, 1]."""
    return 2 * safety + safety * helpfulness


class Searching(Around):
    """An engine that searches in the grey band of the switch that it is given.

    Attributes:
        searched: Requests searched so far.
    """

    def __init__(self, inner: ReadingEngine, method: _Search) -> None:
        super().__init__(inner)
        self.method, self.searched = method, 0

    def generate(
        self,
        prompts: Sequence[Prompt],
        switch: Switch | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Reply]:
        """As an engine's own ``generate``."""
        replies = self.inner.generate(prompts, switch=switch, **options)
        if switch is None:
            return replies
        if "grey" not in switch.record or switch.gate.watch is None:
            raise SettingError(
                f"{self.method.name}: this switch was not prepared by it: it has no grey band or "
                "no watch"
            )
        low, high = switch.record["grey"]
        judge = RewardModel(self.inner, switch.gate.watch.prober, self.method.settings.seed)
        rows = self.lm.encode(list(prompts))
        limits = options.get("max_new_tokens", 256)
        for i, reply in enumerate(replies):
            score = reply.decision.scores.get("stage1", -1.0)
            if reply.decision.fired or not low < score <= high:
                continue
            self.searched += 1
            found = self.method.search(
                judge, rows[i], reply.token_ids, limits if isinstance(limits, int) else limits[i]
            )
            if tuple(found) != reply.token_ids:
                text = str(self.lm.tokenizer.decode(found, skip_special_tokens=True))
                reason: Literal["stop", "length"] = "stop" if judge.ended(found) else "length"
                decision = replace(reply.decision, actuator=self.method.name)
                replies[i] = replace(
                    reply,
                    text=text,
                    token_ids=tuple(found),
                    finish_reason=reason,
                    decision=decision,
                )
        return replies
