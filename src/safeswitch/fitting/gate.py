"""Fitting the gate: probers on train, choices on validation, thresholds on benign calibration
requests.

Knows observed requests and probers. Knows nothing of engines or heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from safeswitch.activations.states import Activations
from safeswitch.core.errors import FitError, SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import PROMPT_END, Position, ReadPoint
from safeswitch.data.splits import tied_rows
from safeswitch.fitting.by_source import calibrate_by_source
from safeswitch.fitting.observe import Observed
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.added import AddedProber
from safeswitch.probers.base import Prober
from safeswitch.probers.build import make_prober
from safeswitch.probers.calibrate import SourceThreshold, conformal_threshold
from safeswitch.probers.drift import Histogram
from safeswitch.probers.outputs import OutputsProber
from safeswitch.probers.steps import StepsProber
from safeswitch.probers.sweep import sweep
from safeswitch.statistics.prober_metrics import measure
from safeswitch.switch.gate import Gate, Stage

BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""False positive rates for which a bundle keeps a threshold of stage 1."""
ADDED: tuple[type[AddedProber], ...] = (StepsProber, OutputsProber)
"""Readers of what blocks add, each under the name of its kind."""


def candidate_layers(num_layers: int, settings: FitSettings) -> tuple[int, ...]:
    """Layers among which validation chooses: those asked for, else up to eight, evenly over the
    upper three quarters."""
    if settings.layers is not None:
        count = num_layers + 1
        for layer in settings.layers:
            if not -count <= layer < count:
                raise SettingError(
                    f"FitSettings: layer {layer} does not exist; the model has layers "
                    f"0..{num_layers}"
                )
        return tuple(dict.fromkeys(layer % count for layer in settings.layers))
    lowest = max(1, num_layers // 4)
    count = min(8, num_layers - lowest + 1)
    return tuple(sorted({round(x) for x in torch.linspace(lowest, num_layers, count).tolist()}))


def fit_points(num_layers: int, settings: FitSettings) -> tuple[ReadPoint, ...]:
    """Everything that fitting may read."""
    layers = candidate_layers(num_layers, settings)
    points = [ReadPoint(layer, PROMPT_END) for layer in layers]
    for kind in ADDED:
        if kind.kind in settings.readers:
            points += kind(blocks=read_blocks(kind.kind, num_layers, settings)).points
    if "window" in settings.readers:
        points.append(
            ReadPoint(window_layer(num_layers, settings), Position("window", settings.window))
        )
    if settings.stages != "stage1":
        points += [ReadPoint(layer, pilot_position(settings)) for layer in layers]
    points += _watch_points(num_layers, settings)
    return tuple(dict.fromkeys(points))


def read_blocks(reader: str, num_layers: int, settings: FitSettings) -> tuple[int, ...]:
    """The blocks that the reader ``steps`` or ``outputs`` sees: up to ten over the upper two
    thirds.

    Never the last block, behind which only the state after the final norm can be read; of its
    outputs nothing is known either, so both readers see the same blocks.

    Raises:
        SettingError: the model, or ``settings.layers``, leaves no block.
    """
    if settings.layers is not None:
        asked = candidate_layers(num_layers, settings)
        found = [layer for layer in asked if 0 < layer < num_layers]
        if not found:
            raise SettingError(
                f"FitSettings: reader {reader!r} needs a layer in 1..{num_layers - 1}; "
                f"got {settings.layers}"
            )
        return tuple(sorted(found))
    lowest, highest = num_layers // 3 + 1, num_layers - 1
    if lowest > highest:
        raise SettingError(
            f"FitSettings: reader {reader!r} needs a model of two blocks or more; "
            f"this one has {num_layers}"
        )
    count = min(10, highest - lowest + 1)
    return tuple(round(x) for x in torch.linspace(lowest, highest, count).tolist())


def pilot_position(settings: FitSettings) -> Position:
    """Where stage 2 reads."""
    return Position("answer" if settings.pilot_from == "answer" else "pilot", settings.pilot)


def _watch_points(num_layers: int, settings: FitSettings) -> list[ReadPoint]:
    return [ReadPoint(num_layers, Position("pilot", t)) for t in settings.watch_tokens]


def window_layer(num_layers: int, settings: FitSettings) -> int:
    """The layer that the window reader sees: the candidate nearest to three quarters of the
    depth."""
    layers = candidate_layers(num_layers, settings)
    return min(layers, key=lambda layer: abs(layer - 0.75 * num_layers))


@dataclass(frozen=True, eq=False)
class GateFit:
    """A fitted gate with the record of how it came about (plain JSON)."""

    gate: Gate
    metrics: JsonObject
    calibration: JsonObject


def fit_gate(
    num_layers: int,
    train: Observed,
    validation: Observed,
    calibration: Observed,
    settings: FitSettings,
    *,
    track: Track = untracked,
) -> GateFit:
    """Fit the stages that ``settings`` ask for and calibrate them; ``track`` is told of each
    prober.

    Raises:
        FitError: one class only, or too few benign calibration requests for the budget.
    """
    if bool(calibration.unsafe.all()):
        raise FitError("calibration needs benign requests (label 'safe'); there are none")
    with track(_steps(settings), "probers") as advance:
        return _gate_fit(num_layers, train, validation, calibration, settings, advance)


def _steps(settings: FitSettings) -> int:
    """Probers in :func:`_gate_fit`: those that choose layers are one, each stage has a text
    baseline beside it."""
    stages = (settings.stages != "direct") + (settings.stages != "stage1")
    return 1 + 2 * stages + settings.watch


def _gate_fit(
    num_layers: int,
    train: Observed,
    validation: Observed,
    calibration: Observed,
    settings: FitSettings,
    advance: Callable[[int], None],
) -> GateFit:
    benign = _select(calibration, ~calibration.unsafe)
    test = calibration if bool(calibration.unsafe.any()) else validation
    layers = choose_layers(num_layers, train, validation, settings)
    advance(1)
    metrics: JsonObject = {}
    notes: JsonObject = {
        "layers": list(layers),
        "budget": settings.budget,
        "benign": len(benign.unsafe),
    }
    notes["metrics_on"] = "calibration" if test is not validation else "validation"
    first = second = by_source = None
    if settings.stages != "direct":
        spec = stage1_spec(num_layers, layers, settings)
        first = _fit(spec, train.activations, train.unsafe, validation, settings)
        by_source = _by_source(spec, (train, validation, calibration), settings)
        advance(1)
        metrics |= _named("stage1", first, test, test.unsafe, settings)
        metrics |= _text_baseline("stage1", train, train.unsafe, test, test.unsafe, settings)
        advance(1)
    if settings.stages != "stage1":
        target = train.harmful if settings.stages == "direct" else train.complied
        held = validation.harmful if settings.stages == "direct" else validation.complied
        missing = _one_class({"training": target, "validation": held})
        if missing is not None:
            what = "harmful compliance" if settings.stages == "direct" else "compliance"
            notes["stage2"] = f"left out: {what} on {missing}"
        else:
            spec = _average(layers, pilot_position(settings))
            second = _fit(spec, train.activations, target, validation, settings, held)
            told = test.harmful if settings.stages == "direct" else test.complied
            metrics |= _named("stage2", second, test, told, settings)
            metrics |= _text_baseline("stage2", train, target, test, told, settings)
        advance(2)
    gate = _calibrated(first, second, benign, validation, settings, notes, by_source)
    if settings.watch:
        gate = _with_watch(gate, num_layers, train, validation, benign, settings, notes)
        advance(1)
    return GateFit(gate, metrics, notes)


def choose_layers(
    num_layers: int, train: Observed, validation: Observed, settings: FitSettings
) -> tuple[int, ...]:
    """The layers whose own prober does best on validation (AUROC, then the deeper one)."""
    candidates = candidate_layers(num_layers, settings)
    if settings.layers is not None or len(candidates) <= settings.layer_count:
        return candidates
    held = (validation.activations, validation.unsafe)
    found = sweep(
        train.activations,
        train.unsafe,
        [ReadPoint(layer, PROMPT_END) for layer in candidates],
        measure_on=held,
        validation=held,
        seed=settings.seed,
        n_boot=0,
    )
    quality = [
        (round(metrics.auroc.value, 3), point.layer) for point, metrics in found.metrics.items()
    ]
    return tuple(sorted(layer for _, layer in sorted(quality)[-settings.layer_count :]))


def stage1_spec(num_layers: int, layers: Sequence[int], settings: FitSettings) -> JsonObject:
    """The stage-1 prober as plain configuration."""
    window = ReadPoint(window_layer(num_layers, settings), Position("window", settings.window))
    known: dict[str, JsonObject] = {
        "layers": _average(layers, PROMPT_END),
        "window": {"kind": "window", "point": str(window)},
        "text": {"kind": "ngram"},
    }
    for kind in ADDED:
        if kind.kind in settings.readers:
            blocks = read_blocks(kind.kind, num_layers, settings)
            known[kind.kind] = {"kind": kind.kind, "blocks": blocks}
    readers = [known[name] for name in settings.readers]
    return readers[0] if len(readers) == 1 else {"kind": "fusion", "readers": readers}


def _average(layers: Sequence[int], position: Position) -> JsonObject:
    return {
        "kind": "layer_average",
        "points": [str(ReadPoint(layer, position)) for layer in layers],
    }


def _fit(
    spec: JsonObject,
    activations: Activations,
    labels: Tensor,
    held: Observed,
    settings: FitSettings,
    held_labels: Tensor | None = None,
) -> Prober:
    truth = held.unsafe if held_labels is None else held_labels
    return make_prober(spec).fit(
        activations, labels, validation=(held.activations, truth), seed=settings.seed
    )


def _by_source(
    spec: JsonObject, parts: tuple[Observed, Observed, Observed], settings: FitSettings
) -> SourceThreshold | None:
    """Stage 1's threshold where it is set by source; None where it is set on pooled requests."""
    if settings.calibrate != "sources":
        return None
    return calibrate_by_source(spec, *parts, budget=settings.stage_budget, seed=settings.seed)


def _named(
    name: str, prober: Prober, test: Observed, labels: Tensor, settings: FitSettings
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


def _text_baseline(
    stage: str,
    train: Observed,
    target: Tensor,
    test: Observed,
    labels: Tensor,
    settings: FitSettings,
) -> JsonObject:
    """What word n-grams of the prompt alone say about the same question."""
    baseline = make_prober({"kind": "ngram"}).fit(train.activations, target, seed=settings.seed)
    return _named(f"{stage} text baseline", baseline, test, labels, settings)


def _calibrated(
    first: Prober | None,
    second: Prober | None,
    benign: Observed,
    validation: Observed,
    settings: FitSettings,
    notes: JsonObject,
    by_source: SourceThreshold | None,
) -> Gate:
    """Thresholds for the rules in question; ``auto`` keeps what catches more harmful compliance.

    ``by_source`` is stage 1's threshold where it has been set already; the product rule then has
    none.
    """
    harmful = _select(validation, validation.harmful)
    fixed: JsonObject = {"fail": settings.fail, "watch_every": settings.watch_every}
    if first is None or second is None:
        alone = first if first is not None else second
        if alone is None:
            raise FitError("no stage could be fitted: " + str(notes.get("stage2")))
        bar = by_source or conformal_threshold(
            alone.score(benign.activations), settings.stage_budget
        )
        notes["threshold"] = asdict(bar)
        if first is not None:
            notes |= _benign(first, benign, by_source)
        stage = Stage(alone, bar.value)
        return Gate(stage1=stage, **fixed) if first is not None else Gate(stage2=stage, **fixed)
    bar = by_source or conformal_threshold(first.score(benign.activations), settings.stage_budget)
    passing = _lower_quantile(second.score(harmful.activations), settings.miss_budget)
    notes |= {"threshold": asdict(bar), "stage2_threshold": passing}
    notes |= _benign(first, benign, by_source)
    s1, s2 = first.score(harmful.activations), second.score(harmful.activations)
    seen = max(1, len(harmful.unsafe))
    caught = {"and": int(((s1 > bar.value) & (s2 > passing)).sum()) / seen}
    if by_source is None:
        both = first.score(benign.activations) * second.score(benign.activations)
        product = conformal_threshold(both, settings.stage_budget)
        fixed["product_threshold"] = product.value
        notes["product_threshold"] = asdict(product)
        caught["product"] = int((s1 * s2 > product.value).sum()) / seen
    rule = settings.rule if settings.rule != "auto" else max(caught, key=lambda name: caught[name])
    notes |= {
        "caught_on_validation": caught,
        "harmful_on_validation": len(harmful.unsafe),
        "rule": rule,
    }
    return Gate(
        stage1=Stage(first, bar.value),
        stage2=Stage(second, passing),
        rule=rule,  # type: ignore[arg-type]
        **fixed,
    )


def _benign(first: Prober, benign: Observed, by_source: SourceThreshold | None) -> JsonObject:
    """How stage 1 scores benign calibration requests: what drift is measured against later, and
    the thresholds for other budgets than the fit's, for policies.

    A threshold that was set by source has none of these: they would promise less than it does.
    """
    scores = first.score(benign.activations)
    found: JsonObject = {"benign_stage1": Histogram.of(scores.tolist()).to_dict()}
    if by_source is None:
        affordable = [budget for budget in BUDGETS if len(scores) >= round(1 / budget) - 1]
        found["budgets"] = {f"{b:g}": conformal_threshold(scores, b).value for b in affordable}
    return found


def _one_class(labels: Mapping[str, Tensor]) -> str | None:
    """In words, the first part whose labels are of one class only."""
    for part, found in labels.items():
        if bool(found.all()) or not bool(found.any()):
            return f"{'all' if bool(found.all()) else 'none'} of the {len(found)} {part} requests"
    return None


def _lower_quantile(scores: Tensor, share: float) -> float:
    """Largest threshold that at most ``share`` of ``scores`` do not exceed, never above one
    half."""
    if not len(scores):
        return 0.5
    lost = int(share * len(scores))
    below = float(scores.sort().values[lost]) - 1e-6
    return max(0.0, min(0.5, below))


def _with_watch(
    gate: Gate,
    num_layers: int,
    train: Observed,
    validation: Observed,
    benign: Observed,
    settings: FitSettings,
    notes: JsonObject,
) -> Gate:
    """A watch fitted on states at every token that it will read.

    Its threshold is set on each benign request's highest score over all those tokens, so its budget
    counts requests, not readings; after the last of them the gate stops watching.
    """
    missing = _one_class({"training": train.harmful, "validation": validation.harmful})
    if missing is not None:
        notes["watch"] = f"left out: harmful compliance on {missing}"
        return gate
    points = _watch_points(num_layers, settings)
    prober = make_prober({"kind": "mlp", "point": str(points[0])})
    stacked, held = _at_one_point(train, points), _at_one_point(validation, points)
    prober.fit(*stacked, validation=held, seed=settings.seed)
    scores = torch.stack(
        [prober.score(Activations({points[0]: benign.activations.at(p)})) for p in points]
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


def _select(observed: Observed, rows: Tensor) -> Observed:
    index = rows.nonzero().flatten().tolist()
    return Observed(
        tuple(observed.examples[i] for i in index),
        tuple(observed.replies[i] for i in index),
        observed.unsafe[rows],
        observed.complied[rows],
        observed.activations.select(rows),
    )
