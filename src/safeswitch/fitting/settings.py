"""What can be chosen when a switch is fitted. Knows nothing of how it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from safeswitch.core.deprecated import renamed
from safeswitch.core.errors import SettingError, check_choice, check_range
from safeswitch.core.json_types import JsonObject
from safeswitch.fitting.refusal_head import HeadSettings
from safeswitch.probers.base import PROBERS
from safeswitch.switch.gate import FAILS, Fail

READERS: tuple[str, ...] = ("layers", "window", "text", "steps", "outputs", "means")
FIT_RULES: tuple[str, ...] = ("auto", "and", "product")
STAGES: tuple[str, ...] = ("two", "stage1", "direct")
PILOT_FROM: tuple[str, ...] = ("reply", "answer")
CALIBRATE: tuple[str, ...] = ("pooled", "sources")


@renamed("reply_tokens", "max_new_tokens")
@dataclass(frozen=True)
class FitSettings:
    """How a switch is fitted.

    Args:
        budget: False positive rate (FPR) that the gate is calibrated to (conformal, on ordinary
            requests of the calibration part: safe ones that are no look-alikes); with a watch,
            half of it goes to the stages and half to the watch.
        stages: ``two`` (the paper's), ``stage1`` alone, or ``direct`` (one prober after k pilot
            tokens: unsafe and about to comply).
        rule: Gate rule; ``auto`` takes ``and``, unless ``product`` catches more on validation at the
            same budget, and more than chance explains.
        pilot: Pilot tokens k before stage 2.
        pilot_from: Where they are counted from: the ``reply``'s first token, or that of the
            ``answer``, behind a reasoning model's thinking, which ``max_new_tokens`` must then have
            room for.
        readers: What stage 1 fuses: ``steps`` (what blocks of the upper two thirds add to the
            residual stream at the prompt's end, weighed by source), ``outputs`` (the same, of the
            attention and the MLP of each block on its own), ``means`` (the steps, at the prompt's end
            and as means over its last tokens), ``layers`` (average over layers at the
            prompt's end), ``window`` (token-wise over the prompt's last tokens), ``text`` (word
            n-grams), or any prober by its name that needs to be told no more than where to read
            (:data:`safeswitch.probers.build.PLACES`). On sets of requests that were left out of the
            fit, ``steps`` and ``means`` hold best; the latter tells kinds of harm apart better, and
            costs vLLM its prefix cache.
        calibrate: What stage 1's threshold is set on: ``pooled``, the ordinary requests of the
            calibration part, which come from the sources that are fitted on; or ``sources``, each
            safe source while it is left out of the fit
            (:func:`safeswitch.fitting.by_source.calibrate_by_source`), for traffic of another kind
            than the fit data. The latter needs a stage 1, and sets no threshold for the rule
            ``product``: ``auto`` then means ``and``.
        layers: Layer numbers to read, negative ones from the end; None chooses ``layer_count`` on
            validation. ``steps``, ``outputs`` and ``means`` read the blocks that end at these layers, by
            default ten.
        layer_count: How many layers are averaged.
        window: Prompt tokens that the window reader sees; 0 for all.
        watch: Fit a watch that reads the running reply too, up to ``max_new_tokens``.
        watch_every: Reply tokens between two readings of the watch.
        miss_budget: Fraction of harmful compliance that stage 2 may let pass (rule ``and``).
        max_new_tokens: Length of the replies that are judged for compliance, in tokens.
        answered: Most requests of each part that the base model answers, drawn over labels and
            sources alike; of the others stage 1 reads the prompt alone, which costs a fraction.
        head: How the refusal head is trained.
        head_examples: Most requests of each kind for the head.
        trust_replies: Take ``reply`` of unsafe requests as refusals even where most do not read as
            such (other languages).
        fail: ``closed`` or ``open``.
        seed: Of everything drawn.
    """

    budget: float = 0.02
    stages: Literal["two", "stage1", "direct"] = "two"
    rule: Literal["auto", "and", "product"] = "auto"
    pilot: int = 3
    pilot_from: Literal["reply", "answer"] = "reply"
    readers: tuple[str, ...] = ("steps",)
    calibrate: Literal["pooled", "sources"] = "pooled"
    layers: tuple[int, ...] | None = None
    layer_count: int = 3
    window: int = 64
    watch: bool = False
    watch_every: int = 8
    miss_budget: float = 0.01
    max_new_tokens: int = 32
    answered: int = 1600
    head: HeadSettings = field(default_factory=HeadSettings)
    head_examples: int = 400
    trust_replies: bool = False
    fail: Fail = "closed"
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("FitSettings", "budget", self.budget, 1e-6, 0.5)
        check_range("FitSettings", "miss_budget", self.miss_budget, 0.0, 0.5)
        check_choice("FitSettings", "rule", self.rule, FIT_RULES)
        check_choice("FitSettings", "stages", self.stages, STAGES)
        check_choice("FitSettings", "fail", self.fail, FAILS)
        check_choice("FitSettings", "pilot_from", self.pilot_from, PILOT_FROM)
        check_choice("FitSettings", "calibrate", self.calibrate, CALIBRATE)
        if self.calibrate == "sources" and (self.stages == "direct" or self.rule == "product"):
            got = "stages 'direct'" if self.stages == "direct" else "rule 'product'"
            raise SettingError(
                "FitSettings: calibrate 'sources' sets the threshold of stage 1 alone, which "
                f"{got} does not use; take stages 'two' or 'stage1' with rule 'and', or calibrate "
                "'pooled'"
            )
        if not self.readers:
            raise SettingError(
                f"FitSettings: readers is empty; name at least one of {', '.join(READERS)}"
            )
        for reader in self.readers:
            if reader not in READERS and reader not in PROBERS:
                raise SettingError(
                    f"FitSettings: readers must be among {', '.join(map(repr, READERS))} and the "
                    f"registered probers, {', '.join(PROBERS)}; got {reader!r}"
                )
        if self.layers is not None and not self.layers:
            raise SettingError(
                "FitSettings: layers is empty; name at least one, or give None to have them chosen"
            )
        if self.window < 0:
            raise SettingError(
                f"FitSettings: window must be 0 (the whole prompt) or more; got {self.window}"
            )
        for name in ("layer_count", "max_new_tokens", "answered", "head_examples", "watch_every"):
            if getattr(self, name) < 1:
                raise SettingError(
                    f"FitSettings: {name} must be 1 or more; got {getattr(self, name)}"
                )
        if self.watch and self.watch_every > self.max_new_tokens:
            raise SettingError(
                f"FitSettings: watch_every must lie in 1..{self.max_new_tokens} (max_new_tokens), "
                f"or nothing is ever read; got {self.watch_every}"
            )
        if not 0 <= self.pilot < self.max_new_tokens:
            raise SettingError(
                f"FitSettings: pilot must lie in 0..{self.max_new_tokens - 1} (below "
                f"max_new_tokens); got {self.pilot}"
            )

    def to_dict(self) -> JsonObject:
        """Plain JSON, as the records of bundles and the identities of runs hold it.

        Files keep the key ``reply_tokens`` for ``max_new_tokens``, so that a run folder of an
        earlier version is resumed and not taken for another run.
        """
        values = asdict(self)
        return {"reply_tokens" if key == "max_new_tokens" else key: values[key] for key in values}

    @property
    def stage_budget(self) -> float:
        """What each calibrated threshold may spend of the FPR budget."""
        return self.budget / 2 if self.watch else self.budget

    @property
    def pooled_budget(self) -> float | None:
        """What each threshold set on the calibration part may spend; None: none is set there."""
        return None if self.calibrate == "sources" and not self.watch else self.stage_budget

    @property
    def watch_tokens(self) -> tuple[int, ...]:
        """Reply tokens at which the watch reads (and at a reply's last token before the end of
        these)."""
        return (
            tuple(range(self.watch_every, self.max_new_tokens + 1, self.watch_every))
            if self.watch
            else ()
        )
