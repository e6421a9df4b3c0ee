"""The gate: which scores are asked for when, and what they decide.

Pure decisions over scores; the engines bring the states. Two rules (SafeSwitch, arXiv 2502.01042):
the reference code fires when both stages pass their own threshold (``and``); the paper's text
multiplies the two probabilities and compares the product with one threshold (``product``), which
needs both stages. Stage 1 alone, or stage 2 alone (a direct prober), fires above its own threshold.

Shapes: n requests. Knows nothing of models, tokens or actuators.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import SettingError, check_choice, check_range
from safeswitch.core.types import MOST_TOKENS, REREAD, RUNNING, ReadPoint, Site
from safeswitch.probers.base import Prober
from safeswitch.probers.harms import UNREAD, HarmReader, Seen
from safeswitch.switch.rules import Rules

Rule = Literal["and", "product"]
Fail = Literal["closed", "open"]
RULES: tuple[str, ...] = ("and", "product")
FAILS: tuple[str, ...] = ("closed", "open")
_log = logging.getLogger("safeswitch.gate")
MOST_PILOT = 2**16
"""Most tokens that a reply may be held back for stage 2."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A prober with the score above which it says yes.

    Args:
        prober: Fitted prober.
        threshold: Score in [0, 1]; the stage passes when ``score > threshold``.
    """

    prober: Prober
    threshold: float

    def __post_init__(self) -> None:
        check_range("Stage", "threshold", self.threshold, 0.0, 1.0)

    @property
    def pilot(self) -> int:
        """Tokens of the reply, or of the answer where it reads there, that must have been fed
        before it can be scored."""
        return max(
            (p.position.index for p in self.prober.points if p.position.kind in RUNNING), default=0
        )

    @property
    def answers(self) -> bool:
        """Whether it reads behind the end of thinking."""
        return any(p.position.kind == "answer" for p in self.prober.points)


@dataclass(frozen=True, eq=False)
class Gate:
    """When to switch.

    Args:
        stage1: Is the request unsafe? Read at the prompt's end.
        stage2: Is the model about to comply? Read after ``stage2.pilot`` reply tokens; with
            ``answer`` points, after so many tokens behind the end of the model's thinking, or at
            the reply's end where it has not come so far.
        watch: Read every ``watch_every`` reply tokens after stage 2, on requests that have not
            fired; where stage 2 waits for the end of thinking, from the reply's beginning, thinking
            included. Its prober is given the newest token's state under each of its ``pilot``
            points.
        late: Read in a pass of its own, over the reply so far with its prober's tokens appended,
            every ``late_every`` reply tokens and at the reply's end, on requests that have not
            fired.
        rule: How stage 1 and stage 2 combine.
        product_threshold: Threshold of the product rule, in [0, 1].
        watch_every: Reply tokens between two readings of ``watch``.
        watch_until: Reply tokens after which ``watch`` is no longer read (its threshold was
            calibrated up to there); None reads to the end.
        late_every: Reply tokens between two readings of ``late``.
        always: Fire on every request without reading anything (an always-on baseline).
        fail: ``closed`` fires when a prober cannot run (exception, NaN); ``open`` lets the request
            pass.
        harms: Reads which kind of harm is in a request that fires, from states of its prompt.
        rules: What a policy has done by that kind; no part of a bundle. See :meth:`with_rules`.
    """

    stage1: Stage | None = None
    stage2: Stage | None = None
    watch: Stage | None = None
    late: Stage | None = None
    rule: Rule = "and"
    product_threshold: float = 0.5
    watch_every: int = 8
    watch_until: int | None = None
    late_every: int = 8
    always: bool = False
    fail: Fail = "closed"
    harms: HarmReader | None = None
    rules: Rules | None = None

    def __post_init__(self) -> None:
        check_choice("Gate", "rule", self.rule, RULES)
        check_choice("Gate", "fail", self.fail, FAILS)
        check_range("Gate", "product_threshold", self.product_threshold, 0.0, 1.0)
        check_range("Gate", "watch_every", self.watch_every, 1, MOST_TOKENS)
        check_range("Gate", "late_every", self.late_every, 1, MOST_TOKENS)
        check_range("Gate", "watch_until", self.watch_until or 0, 0, MOST_TOKENS)
        if self.pilot > MOST_PILOT:
            raise SettingError(
                f"Gate: stage2 must decide within {MOST_PILOT} tokens; its prober reads after "
                f"{self.pilot}"
            )
        if self.watch_until is not None and self.watch_until < self.watch_every:
            raise SettingError(
                f"Gate: watch_until must be watch_every={self.watch_every} tokens or more, or "
                f"None; got {self.watch_until}"
            )
        for name in ("stage1", "stage2", "watch", "late"):
            self._check_reread(name)
        if self.stage1 is not None and (self.stage1.pilot or self.stage1.answers):
            raise SettingError(
                "Gate: stage1 must read the prompt only; its prober reads reply tokens"
            )
        if self.answers and any(p.position.kind == "pilot" for p in self.pilot_points):
            raise SettingError("Gate: stage2 must read pilot points or answer points, not both")
        read = [p.position for p in self.watch.prober.points] if self.watch is not None else []
        if self.watch is not None and (
            not read or any(position.kind != "pilot" for position in read)
        ):
            raise SettingError(
                "Gate: watch must read the running reply, that is one or more pilot points and "
                f"nothing else; its prober reads {', '.join(map(str, read)) or 'no states'}"
            )
        if self.rule == "product" and (self.stage1 is None) != (self.stage2 is None):
            raise SettingError("Gate: the product rule needs stage1 and stage2")

    def _check_reread(self, name: str) -> None:
        stage: Stage | None = getattr(self, name)
        reread = (
            [str(p) for p in stage.prober.points if p.position.kind in REREAD]
            if stage is not None
            else []
        )
        if reread and name not in ("stage1", "late"):
            raise SettingError(
                f"Gate: {name} cannot read {', '.join(reread)}; only stage1 and late read after "
                "appended tokens"
            )
        if reread and stage is not None and not stage.prober.appended:
            raise SettingError(
                f"Gate: {name} reads {', '.join(reread)}, but its prober names no tokens to append"
            )
        if name == "late" and stage is not None and len(reread) != max(1, len(stage.prober.points)):
            raise SettingError("Gate: late must read after appended tokens and nothing else")

    @property
    def screens(self) -> bool:
        """Whether a request can be judged at its prompt's end alone, without a reply."""
        return self.always or self.stage1 is not None

    @property
    def pilot(self) -> int:
        """Tokens of the reply, or of the answer, after which every request without a watch is
        decided."""
        return self.stage2.pilot if self.stage2 is not None else 0

    @property
    def answers(self) -> bool:
        """Whether stage 2 waits for the end of the model's thinking."""
        return self.stage2 is not None and self.stage2.answers

    @property
    def prompt_points(self) -> tuple[ReadPoint, ...]:
        """What must be read of the prompt."""
        points = [
            p
            for s in (self.stage1, self.stage2)
            if s
            for p in s.prober.points
            if p.position.kind not in RUNNING
        ]
        return tuple(dict.fromkeys([*points, *self._harm_points]))

    @property
    def pilot_points(self) -> tuple[ReadPoint, ...]:
        """What must be read in the running reply for stage 2."""
        points = self.stage2.prober.points if self.stage2 is not None else ()
        return tuple(p for p in points if p.position.kind in RUNNING)

    @property
    def points(self) -> tuple[ReadPoint, ...]:
        """Everything that any stage reads, each once."""
        stages = [s for s in (self.stage1, self.stage2, self.watch, self.late) if s is not None]
        points = [point for stage in stages for point in stage.prober.points]
        return tuple(dict.fromkeys([*points, *self._harm_points]))

    @property
    def _harm_points(self) -> tuple[ReadPoint, ...]:
        return self.harms.points if self.harms is not None else ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of every layer that any stage reads, or of whose block it reads an output."""
        return tuple(sorted({point.layer for point in self.points}))

    @property
    def running_sites(self) -> frozenset[Site]:
        """Where in the model the pass that replies is read."""
        stages = [s for s in (self.stage1, self.stage2, self.watch) if s is not None]
        points = [point for stage in stages for point in stage.prober.points]
        points += self._harm_points
        return frozenset(point.site for point in points if point.position.kind not in REREAD)

    @property
    def reads_text(self) -> bool:
        """Whether a stage, or the reader of kinds of harm, needs the requests' plain text."""
        if self.harms is not None and self.harms.reads_text:
            return True
        return any(
            s.prober.reads_text
            for s in (self.stage1, self.stage2, self.watch, self.late)
            if s is not None
        )

    @property
    def reads_means(self) -> bool:
        """Whether means over prompt tokens are read."""
        return any(p.position.kind == "mean" for p in self.prompt_points)

    @property
    def reread_points(self) -> tuple[ReadPoint, ...]:
        """What stage 1 reads after appended tokens, in a pass of its own."""
        return tuple(p for p in self.prompt_points if p.position.kind in REREAD)

    @property
    def apart_points(self) -> tuple[ReadPoint, ...]:
        """The old name of :attr:`reread_points`."""
        message = "Gate.apart_points is called reread_points now"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.reread_points

    def at_prompt(self, activations: Activations) -> Reading:
        """Judge n requests at the prompt's end; ``pending`` rows need stage 2."""
        n = len(activations)
        if self.always:
            return Reading(
                torch.zeros(n),
                torch.ones(n, dtype=torch.bool),
                torch.zeros(n, dtype=torch.bool),
                (None,) * n,
            )
        if self.stage1 is None:
            pending = torch.full((n,), self.stage2 is not None)
            return Reading(torch.zeros(n), torch.zeros(n, dtype=torch.bool), pending, (None,) * n)
        scores, errors = _score(self.stage1, activations)
        bar = self.product_threshold if self.rule == "product" else self.stage1.threshold
        passed = self._passed(scores, bar)
        if self.stage2 is None:
            return Reading(scores, passed, torch.zeros_like(passed), errors)
        failed = torch.tensor([e is not None for e in errors])
        closed = failed & (self.fail == "closed")
        return Reading(scores, closed, passed & ~closed, errors)

    def at_pilot(self, activations: Activations, stage1_scores: Tensor) -> Reading:
        """Judge n pending requests, which stage 1 gave ``stage1_scores`` ``[n]``, once their pilot
        tokens have been fed."""
        assert self.stage2 is not None
        scores, errors = _score(self.stage2, activations)
        if self.rule == "product":
            fired = self._passed(scores * stage1_scores, self.product_threshold)
        else:
            fired = self._passed(scores, self.stage2.threshold)
        return Reading(scores, fired, torch.zeros_like(fired), errors)

    def at_watch(self, activations: Activations) -> Reading:
        """Judge running replies."""
        assert self.watch is not None
        return self._judge(self.watch, activations)

    def at_late(self, activations: Activations) -> Reading:
        """Judge replies so far, read after appended tokens."""
        assert self.late is not None
        return self._judge(self.late, activations)

    def _judge(self, stage: Stage, activations: Activations) -> Reading:
        scores, errors = _score(stage, activations)
        fired = self._passed(scores, stage.threshold)
        return Reading(scores, fired, torch.zeros_like(fired), errors)

    def thresholds(self) -> dict[str, float]:
        """Threshold in force by stage name."""
        if self.rule == "product":
            found = {"product": self.product_threshold}
        else:
            found = {
                n: s.threshold
                for n, s in (("stage1", self.stage1), ("stage2", self.stage2))
                if s is not None
            }
        own = (("watch", self.watch), ("late", self.late))
        return found | {name: stage.threshold for name, stage in own if stage is not None}

    def with_thresholds(self, thresholds: Mapping[str, float]) -> Gate:
        """The same gate with some of its :meth:`thresholds` replaced.

        Raises:
            SettingError: a stage that has no threshold here, or a value outside [0, 1].
        """
        have = self.thresholds()
        for name in thresholds:
            check_choice("Gate", "threshold", name, tuple(have))
        now = {**have, **thresholds}
        own = {name: getattr(self, name) for name in ("stage1", "stage2", "watch", "late")}
        stages = {
            n: replace(s, threshold=now[n]) for n, s in own.items() if s is not None and n in now
        }
        return replace(self, product_threshold=now.get("product", self.product_threshold), **stages)

    def undecided(self) -> Gate:
        """The same stages, each asked as far as the reply goes and none firing: what they say of
        the model's own reply.

        The late stage is left out, since it reads in passes of its own.
        """
        # stage 2 is asked where stage 1 passes, and no score is above 1
        first = 1.0 if self.stage2 is None else 0.0
        return replace(
            self,
            stage1=_with(self.stage1, first),
            stage2=_with(self.stage2, 1.0),
            watch=_with(self.watch, 1.0),
            late=None,
            rule="and",
            always=False,
            fail="open",
        )

    def with_rules(self, rules: Rules) -> Gate:
        """The same gate under a policy's ``rules``; stage 1 then lets through what any of them acts
        on, and a request's own rule decides.

        Raises:
            SettingError: rules with thresholds, and a gate without a threshold of stage 1.
        """
        if self.stage1 is None or self.rule == "product" or self.always:
            if any(rule.threshold is not None for rule in rules.all):
                raise SettingError(
                    "Gate: rules with thresholds need a stage 1 under the rule 'and'; this gate "
                    "decides without a threshold of stage 1"
                )
            return replace(self, rules=rules)
        filled = rules.filled(self.stage1.threshold)
        lowest = min(rule.threshold or 0.0 for rule in filled.all)
        return replace(self, stage1=replace(self.stage1, threshold=lowest), rules=filled)

    def sees(self, activations: Activations, rows: Tensor) -> list[Seen | None]:
        """What kinds of harm are seen in n requests, None for those not in ``rows`` ``[n]`` bool.

        A reader that cannot run never changes what the gate decides: its requests are of the kind
        ``other``.
        """
        found: list[Seen | None] = [None] * len(rows)
        wanted = rows.nonzero().flatten().tolist()
        if self.harms is None or not wanted:
            return found
        try:
            seen = self.harms.read(activations.select(wanted))
        except Exception:  # whatever it is, the gate has decided already
            _log.exception("the reader of kinds of harm cannot run")
            seen = [UNREAD] * len(wanted)
        for row, one in zip(wanted, seen, strict=True):
            found[row] = one
        return found

    def _passed(self, scores: Tensor, bar: float) -> Tensor:
        """``scores > bar``; NaN fires when failing closed and not otherwise."""
        return torch.where(scores.isnan(), torch.tensor(self.fail == "closed"), scores > bar)


@dataclass(frozen=True, eq=False)
class Reading:
    """What one reading of n requests said.

    Args:
        scores: ``[n]`` on the host, NaN where the prober could not run.
        fired: ``[n]`` bool.
        pending: ``[n]`` bool: undecided until the next stage.
        errors: Why a row could not be scored, None for the others.
    """

    scores: Tensor
    fired: Tensor
    pending: Tensor
    errors: tuple[str | None, ...]


def _with(stage: Stage | None, threshold: float) -> Stage | None:
    """The stage at another threshold, where there is one."""
    return None if stage is None else replace(stage, threshold=threshold)


def _score(stage: Stage, activations: Activations) -> tuple[Tensor, tuple[str | None, ...]]:
    """Scores ``[n]`` on the host; any failure of the prober becomes NaN with its reason."""
    try:
        scores = stage.prober.score(activations).detach().float().cpu()
        if scores.shape != (len(activations),):
            raise ValueError(
                f"expected scores of shape ({len(activations)},), got {tuple(scores.shape)}"
            )
    except Exception as error:  # a guard decides on every failure, whatever it is
        reason = f"{type(error).__name__}: {error}"
        return torch.full((len(activations),), float("nan")), (reason,) * len(activations)
    finite = scores.isfinite()
    scores = scores.masked_fill(~finite, float("nan"))
    return scores, tuple(None if good else "the score is not finite" for good in finite.tolist())
