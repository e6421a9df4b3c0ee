"""Fitting the gate: probers on train, choices on validation, thresholds on ordinary calibration
requests.

Ordinary means safe and no look-alike. Look-alikes teach the probers; a threshold set on them would
promise less than it does, since traffic holds few of them.

Knows observed requests and probers. Knows nothing of engines or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import PROMPT_END, ReadPoint
from safeswitch.data.splits import tied_rows
from safeswitch.fitting.by_source import calibrate_by_source
from safeswitch.fitting.observe import Observed, ReadPrompts
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.base import Prober
from safeswitch.probers.build import make_prober
from safeswitch.probers.calibrate import SourceThreshold, conformal_threshold, safe_needed
from safeswitch.probers.drift import Histogram
from safeswitch.probers.sweep import sweep
from safeswitch.statistics.intervals import mcnemar
from safeswitch.statistics.prober_metrics import measure
from safeswitch.switch.gate import Gate, Stage

BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""False positive rates for which a bundle keeps a threshold of stage 1."""
_BY_CHANCE = 0.05
"""Probability (two-sided) below which a difference of two rules is not taken for chance."""
_UNSAFE_BINS = 50
"""Fine enough to tell a loss of 2 % of unsafe requests."""


@dataclass(frozen=True, eq=False)
class GateFit:
    """A fitted gate with the record of how it came about (plain JSON)."""

    gate: Gate
    metrics: JsonObject
    calibration: JsonObject


def fit_gate(
    plan: FitPlan,
    train: Observed,
    validation: Observed,
    calibration: Observed,
    *,
    track: Track = untracked,
) -> GateFit:
    """Fit the stages that the plan's settings ask for and calibrate them; ``track`` is told of each
    prober.

    Raises:
        FitError: one class only, or too few ordinary calibration requests for the budget.
    """
    if not bool(calibration.ordinary.any()):
        raise FitError("calibration needs safe requests that are no look-alikes; there are none")
    with track(_count_probers(plan.settings), "probers") as advance:
        return _GateFitter(plan, train, validation, calibration, advance).fit()


def _count_probers(settings: FitSettings) -> int:
    """Probers that are fitted: those that choose layers are one, each stage has a text baseline
    beside it."""
    stages = (settings.stages != "direct") + (settings.stages != "stage1")
    return 1 + 2 * stages + settings.watch


class _GateFitter:
    """Fits one gate.

    Args:
        plan: What is read, with the settings.
        train, validation, calibration: The observed requests.
        advance: Told of each prober.
    """

    def __init__(
        self,
        plan: FitPlan,
        train: Observed,
        validation: Observed,
        calibration: Observed,
        advance: Callable[[int], None],
    ) -> None:
        self.plan, self.settings = plan, plan.settings
        self.train, self.validation, self.calibration = train, validation, calibration
        self.advance = advance
        self.ordinary = calibration.select(calibration.ordinary)
        self.ordinary_prompts = calibration.prompts.select(calibration.prompts.ordinary)
        both_labels = bool(calibration.unsafe.any())
        self.test = calibration if both_labels else validation
        self.metrics: JsonObject = {}
        self.notes: JsonObject = {
            "layers": [],
            "budget": self.settings.budget,
            "benign": len(self.ordinary_prompts.examples),
            "metrics_on": "calibration" if both_labels else "validation",
        }

    def fit(self) -> GateFit:
        """The stages, their thresholds, and the watch."""
        layers = choose_layers(self.plan, self.train.prompts, self.validation.prompts)
        self.notes["layers"] = list(layers)
        self.advance(1)
        first = second = by_source = None
        if self.settings.stages != "direct":
            first, by_source = self._fit_stage1(self.plan.stage1_spec(layers))
        if self.settings.stages != "stage1":
            second = self._fit_stage2(self.plan.stage2_spec(layers))
            self.advance(2)
        gate = self._calibrated(first, second, by_source)
        if self.settings.watch:
            parts = (self.train, self.validation, self.ordinary)
            gate = _with_watch(gate, self.plan, *parts, self.notes)
            self.advance(1)
        return GateFit(gate, self.metrics, self.notes)

    def _fit_stage1(self, spec: JsonObject) -> tuple[Prober, SourceThreshold | None]:
        """Unsafe or safe, before the reply; with the threshold where it is set by source."""
        train, validation = self.train.prompts, self.validation.prompts
        held = (validation.activations, validation.unsafe)
        prober = self._fit_prober(spec, train.activations, train.unsafe, held)
        parts = (train, validation, self.calibration.prompts)
        by_source = _by_source(spec, parts, self.settings)
        self.advance(1)
        test = self.test.prompts
        self._measure("stage1", prober, train, train.unsafe, test, test.unsafe)
        self.advance(1)
        return prober, by_source

    def _fit_stage2(self, spec: JsonObject) -> Prober | None:
        """Complied with or not, after the pilot tokens; None where there is nothing to learn."""
        direct = self.settings.stages == "direct"
        parts = (self.train, self.validation, self.test)
        target, held, truth = (p.harmful if direct else p.complied for p in parts)
        missing = _one_class({"training": target, "validation": held})
        if missing is not None:
            what = "harmful compliance" if direct else "compliance"
            self.notes["stage2"] = f"left out: {what} on {missing}"
            return None
        on_validation = (self.validation.activations, held)
        prober = self._fit_prober(spec, self.train.activations, target, on_validation)
        self._measure("stage2", prober, self.train, target, self.test, truth)
        return prober

    def _fit_prober(
        self,
        spec: JsonObject,
        activations: Activations,
        target: Tensor,
        validation: tuple[Activations, Tensor],
    ) -> Prober:
        seed = self.settings.seed
        return make_prober(spec).fit(activations, target, validation=validation, seed=seed)

    def _measure(
        self,
        stage: str,
        prober: Prober,
        train: ReadPrompts | Observed,
        target: Tensor,
        test: ReadPrompts | Observed,
        truth: Tensor,
    ) -> None:
        """Note a prober's figures on the test requests, and those of the text alone."""
        self.metrics |= _named(stage, prober, test, truth, self.settings)
        self.metrics |= _text_baseline(stage, train, target, test, truth, self.settings)

    def _calibrated(
        self, first: Prober | None, second: Prober | None, by_source: SourceThreshold | None
    ) -> Gate:
        """The gate of the fitted stages with its thresholds.

        ``by_source`` is stage 1's threshold where it has been set already; the product rule then
        has none.
        """
        alone = second if first is None else first
        if alone is None:
            raise FitError("no stage could be fitted: " + str(self.notes.get("stage2")))
        calm = self.ordinary if first is None else self.ordinary_prompts
        scores = alone.score(calm.activations)
        bar = by_source or conformal_threshold(scores, self.settings.stage_budget)
        self.notes["threshold"] = asdict(bar)
        fixed: JsonObject = {
            "fail": self.settings.fail,
            "watch_every": self.settings.watch_every,
        }
        if first is None:
            return Gate(stage2=Stage(alone, bar.value), **fixed)
        held = self.validation.prompts
        self.notes |= scores_on_record(scores, first.score(held.activations)[held.unsafe])
        if by_source is None:
            # One that was set by source has none of these: they would promise less than it does.
            self.notes["budgets"] = budgets_of(scores)
        stage1 = Stage(first, bar.value)
        if second is None:
            return Gate(stage1=stage1, **fixed)
        with_product = by_source is None
        return _two_stages(
            stage1, second, self.ordinary, self.validation, self.settings, self.notes, with_product
        )


def choose_layers(plan: FitPlan, train: ReadPrompts, validation: ReadPrompts) -> tuple[int, ...]:
    """The layers whose own prober does best on validation (AUROC, then the deeper one)."""
    settings = plan.settings
    if settings.layers is not None or len(plan.layers) <= settings.layer_count:
        return plan.layers
    held = (validation.activations, validation.unsafe)
    found = sweep(
        train.activations,
        train.unsafe,
        [ReadPoint(layer, PROMPT_END) for layer in plan.layers],
        measure_on=held,
        validation=held,
        seed=settings.seed,
        n_boot=0,
    )
    quality = [
        (round(metrics.auroc.value, 3), point.layer) for point, metrics in found.metrics.items()
    ]
    return tuple(sorted(layer for _, layer in sorted(quality)[-settings.layer_count :]))


def _by_source(
    spec: JsonObject,
    parts: tuple[ReadPrompts, ReadPrompts, ReadPrompts],
    settings: FitSettings,
) -> SourceThreshold | None:
    """Stage 1's threshold where it is set by source; None where it is set on pooled requests."""
    if settings.calibrate != "sources":
        return None
    return calibrate_by_source(spec, *parts, budget=settings.stage_budget, seed=settings.seed)


def _text_baseline(
    stage: str,
    train: ReadPrompts | Observed,
    target: Tensor,
    test: ReadPrompts | Observed,
    truth: Tensor,
    settings: FitSettings,
) -> JsonObject:
    """Figures of word n-grams of the prompt alone, fitted on the same ``target``."""
    ngrams = make_prober({"kind": "ngram"})
    ngrams.fit(train.activations, target, seed=settings.seed)
    return _named(f"{stage} text baseline", ngrams, test, truth, settings)


def _named(
    name: str,
    prober: Prober,
    test: ReadPrompts | Observed,
    labels: Tensor,
    settings: FitSettings,
) -> JsonObject:
    """Figures of a prober by title; none where ``test`` is of one class."""
    if bool(labels.all()) or not bool(labels.any()):
        return {}
    found = measure(
        prober.score(test.activations), labels, groups=tied_rows(test.examples), seed=settings.seed
    )
    titles = {
        "AUROC": found.auroc,
        "TPR at 1 % FPR": found.tpr_at_1_fpr,
        "F1 at 0.5": found.f1,
        "calibration error": found.ece,
    }
    return {f"{name} {title}": asdict(figure) for title, figure in titles.items()}


def _two_stages(
    stage1: Stage,
    second: Prober,
    ordinary: Observed,
    validation: Observed,
    settings: FitSettings,
    notes: JsonObject,
    with_product: bool,
) -> Gate:
    """Thresholds for the rules in question; ``auto`` takes the product where it catches more harmful
    compliance than chance explains."""
    fixed: JsonObject = {"fail": settings.fail, "watch_every": settings.watch_every}
    harmful = validation.select(validation.harmful)
    s1, s2 = stage1.prober.score(harmful.activations), second.score(harmful.activations)
    passing = _lower_quantile(s2, settings.miss_budget)
    notes["stage2_threshold"] = passing
    hits = {"and": (s1 > stage1.threshold) & (s2 > passing)}
    best = "and"
    if with_product:
        calm = stage1.prober.score(ordinary.activations)
        product = conformal_threshold(
            calm * second.score(ordinary.activations), settings.stage_budget
        )
        fixed["product_threshold"] = product.value
        notes["product_threshold"] = asdict(product)
        hits["product"] = s1 * s2 > product.value
        # Compared with a first stage whose threshold comes from the same requests: otherwise the
        # rule wins whose threshold happens to be low.
        alike = conformal_threshold(calm, settings.stage_budget).value
        found = mcnemar(
            hits["product"].tolist(),
            ((s1 > alike) & (s2 > passing)).tolist(),
            tied_rows(harmful.examples),
        )
        notes["product_against_and"] = asdict(found)
        more = int(hits["product"].sum()) > int(hits["and"].sum())
        if more and found.only_first > found.only_second and found.p_value < _BY_CHANCE:
            best = "product"
    seen = max(1, len(harmful.unsafe))
    caught = {name: int(hit.sum()) / seen for name, hit in hits.items()}
    rule = best if settings.rule == "auto" else settings.rule
    notes |= {
        "caught_on_validation": caught,
        "harmful_on_validation": len(harmful.unsafe),
        "rule": rule,
    }
    return Gate(
        stage1=stage1,
        stage2=Stage(second, passing),
        rule=rule,  # type: ignore[arg-type]
        **fixed,
    )


def scores_on_record(safe: Tensor, unsafe: Tensor) -> JsonObject:
    """How stage 1 scores ordinary requests (``safe`` ``[n]``), against which drift is measured
    later, and ``unsafe`` ``[m]`` others, by which a later threshold is told what it
    loses."""
    return {
        "benign_stage1": Histogram.of(safe.tolist()).to_dict(),
        "unsafe_stage1": Histogram.of(unsafe.tolist(), bins=_UNSAFE_BINS).to_dict(),
    }


def budgets_of(scores: Tensor) -> JsonObject:
    """Thresholds of stage 1 for other budgets than the fit's, for policies; from the scores ``[n]``
    of ordinary requests."""
    found: JsonObject = {}
    for budget in BUDGETS:
        if len(scores) >= safe_needed(budget):
            found[f"{budget:g}"] = conformal_threshold(scores, budget).value
    return found


def _one_class(labels: Mapping[str, Tensor]) -> str | None:
    """In words, the first part whose labels are of one class only."""
    for part, found in labels.items():
        if bool(found.all()) or not bool(found.any()):
            return f"{'all' if bool(found.all()) else 'none'} of the {len(found)} {part} requests"
    return None


def _lower_quantile(scores: Tensor, fraction: float) -> float:
    """Highest threshold, at most one half, that misses no more than a ``fraction`` of ``scores``:
    those are not above it."""
    if not len(scores):
        return 0.5
    lost = int(fraction * len(scores))
    below = float(scores.sort().values[lost]) - 1e-6
    return max(0.0, min(0.5, below))


def _with_watch(
    gate: Gate,
    plan: FitPlan,
    train: Observed,
    validation: Observed,
    ordinary: Observed,
    notes: JsonObject,
) -> Gate:
    """A watch fitted on states at every token that it will read.

    Its threshold is set on each ordinary request's highest score over all those tokens, so its budget
    counts requests, not readings; after the last of them the gate stops watching.
    """
    missing = _one_class({"training": train.harmful, "validation": validation.harmful})
    if missing is not None:
        notes["watch"] = f"left out: harmful compliance on {missing}"
        return gate
    points, settings = plan.watch_points, plan.settings
    prober = make_prober({"kind": "mlp", "point": str(points[0])})
    stacked, held = _at_one_point(train, points), _at_one_point(validation, points)
    prober.fit(*stacked, validation=held, seed=settings.seed)
    scores = torch.stack(
        [prober.score(Activations({points[0]: ordinary.activations.at(p)})) for p in points]
    ).amax(0)
    bar = conformal_threshold(scores, settings.stage_budget)
    notes["watch"] = asdict(bar)
    return replace(
        gate,
        watch=Stage(prober, bar.value),
        watch_every=settings.watch_every,
        watch_until=settings.watch_tokens[-1],
    )


def _at_one_point(observed: Observed, points: Sequence[ReadPoint]) -> tuple[Activations, Tensor]:
    """The states of all ``points`` as requests at the first of them, and what is harmful."""
    states = torch.cat([observed.activations.at(point) for point in points])
    return Activations({points[0]: states}), observed.harmful.repeat(len(points))
