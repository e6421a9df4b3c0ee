"""Fitting a switch, the whole way: observe the base model, fit and calibrate the gate, train
the refusal head.

Needs an engine to generate with, and is handed one. Knows nothing of files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from safeswitch.core.errors import DataError, FitError
from safeswitch.core.json_types import JsonObject
from safeswitch.core.track import Track, untracked
from safeswitch.core.types import Example, Prompt
from safeswitch.data import starter
from safeswitch.data.refusal_text import refuses
from safeswitch.data.splits import fit_split
from safeswitch.data.writers import data_hash
from safeswitch.fitting.by_source import source_folds
from safeswitch.fitting.gate import fit_gate
from safeswitch.fitting.harms import fit_harms
from safeswitch.fitting.head_data import ReplyStates, closed_first, reply_states
from safeswitch.fitting.observe import Complied, Observed, observe, refusal_pairs
from safeswitch.fitting.plan import FitPlan
from safeswitch.fitting.refusal_head import HeadData, HeadResult, train_refusal_head
from safeswitch.fitting.settings import FitSettings
from safeswitch.probers.calibrate import safe_needed
from safeswitch.switch.actuators.base import HeadActuator
from safeswitch.switch.engine import ReadingEngine
from safeswitch.switch.gate import Gate

Say = Callable[[str], None]
PARTS: tuple[str, ...] = ("train", "validation", "calibration")


@dataclass(frozen=True, eq=False)
class Fitted:
    """What fitting gives: the two halves of a switch, and the record."""

    gate: Gate
    actuator: HeadActuator
    record: JsonObject


def does_not_refuse(example: Example, reply: str) -> bool:
    """The default compliance judge: a reply that is not an English refusal (see
    ``data/refusal_text.py``)."""
    return bool(reply.strip()) and not refuses(reply)


def fit(
    engine: ReadingEngine,
    data: Sequence[Example] | Mapping[str, Sequence[Example]] | None = None,
    settings: FitSettings | None = None,
    *,
    complied: Complied = does_not_refuse,
    say: Say = lambda text: None,
    track: Track = untracked,
) -> Fitted:
    """Fit gate and refusal head on the engine's model.

    Args:
        engine: Generates with the base model.
        data: Labelled requests, which :func:`safeswitch.data.splits.fit_split` divides; or ready
            parts ``train``, ``validation``, ``calibration``; None: the starter set that ships with
            the package.
        settings: How.
        complied: Judge of the base model's replies.
        say: Told what the run will take, and of each step.
        track: Told how far each long step is.

    Raises:
        FitError: data from which nothing can be learned, or with too few safe sources to
            calibrate by.
        DataError: parts that are missing or empty.
        SettingError: a layer that the model does not have.
        ModelError: readers of outputs, and blocks in which these cannot be found.
    """
    settings = settings or FitSettings()
    rows = starter.fitting_rows() if data is None else data
    parts = dict(rows) if isinstance(rows, Mapping) else fit_split(list(rows), settings.seed)
    plan = FitPlan(engine.lm.num_layers, settings)
    for point in plan.points:
        engine.lm.site(point.site)
    check_parts(parts, settings.pooled_budget)
    answered = answered_rows(parts, settings)
    if settings.calibrate == "sources":
        source_folds(parts["train"], [*parts["validation"], *parts["calibration"]])
    say(expected_work(engine, parts, answered, plan))
    observed = _observe_all(engine, parts, answered, plan, complied, say, track)
    say("fitting probers and calibrating thresholds")
    train, validation, calibration = (observed[p] for p in PARTS)
    gate = fit_gate(plan, train, validation, calibration, track=track)
    held = [validation.prompts, calibration.prompts]
    harms = fit_harms(plan, gate.calibration["layers"], train.prompts, held)
    say("training the refusal head")
    head = fit_head(engine, train, validation, settings, complied=complied, track=track)
    record: JsonObject = {
        "settings": settings.to_dict(),
        "sources": sources([e for p in PARTS for e in parts[p]]),
        "data": {p: _part_record(parts[p], answered[p]) for p in PARTS},
        "calibration": gate.calibration,
        "metrics": gate.metrics,
        "harms": harms.notes,
        "head": {
            "loss": head.loss,
            "cross_entropy": head.cross_entropy,
            "kl": head.kl,
            "trained_parameters": head.trained_parameters,
            "tried": head.tried,
        },
    }
    return Fitted(replace(gate.gate, harms=harms.reader), head.head, record)


def sources(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Requests by source, then label; a row without a source counts as ``""``."""
    found: dict[str, dict[str, int]] = {}
    for example in sorted(examples, key=lambda e: e.source):
        counts = found.setdefault(example.source, {"unsafe": 0, "safe": 0})
        counts["unsafe" if example.unsafe else "safe"] += 1
    return found


def _part_record(examples: Sequence[Example], answered: Sequence[int]) -> JsonObject:
    told: JsonObject = {"n": len(examples), "hash": data_hash(list(examples))}
    if len(answered) < len(examples):
        told["answered"] = len(answered)
    return told


def answered_rows(
    parts: Mapping[str, Sequence[Example]], settings: FitSettings
) -> dict[str, list[int]]:
    """Places of the requests in each part that the base model answers.

    Each label and source keeps its fraction. In the calibration part ordinary requests go first, to
    three quarters, since the thresholds on replies are as exact as these are many; no look-alike of
    it is answered, since none is set on them.
    """
    found: dict[str, list[int]] = {}
    for name, examples in parts.items():
        most, every = settings.answered, range(len(examples))
        ordinary = [i for i in every if examples[i].ordinary]
        if name != "calibration" or not ordinary:
            found[name] = _spread_over(examples, every, most, settings.seed)
            continue
        unsafe = [i for i in every if examples[i].unsafe]
        calm = max(safe_needed(settings.stage_budget), most - min(len(unsafe), most // 4))
        rest = max(0, most - min(calm, len(ordinary)))
        drawn = (
            _spread_over(examples, places, count, settings.seed)
            for places, count in ((ordinary, calm), (unsafe, rest))
        )
        found[name] = sorted(place for some in drawn for place in some)
    return found


def _spread_over(
    examples: Sequence[Example], places: Sequence[int], most: int, seed: int
) -> list[int]:
    """At most ``most`` of ``places``, drawn so that each label and source keeps its fraction."""
    n = len(places)
    if n <= most:
        return list(places)
    draw = random.Random(f"answered-{seed}")
    order = sorted(places, key=lambda i: (examples[i].label, examples[i].source, draw.random()))
    return sorted(order[j * n // most] for j in range(most))


def expected_work(
    engine: ReadingEngine,
    parts: Mapping[str, Sequence[Example]],
    answered: Mapping[str, Sequence[int]],
    plan: FitPlan,
) -> str:
    """What a fit will take, in a line: requests, tokens, steps."""
    settings = plan.settings
    rows = [example for name in PARTS for example in parts[name]]
    read = sum(len(one.ids) for one in engine.lm.inputs(rows, check=False))
    written = sum(len(answered[name]) * _reply_length(name, parts, plan) for name in PARTS)
    each = ", ".join(f"{name} {len(parts[name]):,}" for name in PARTS)
    unsafe = [example for example in parts["train"] if example.unsafe]
    given = [example for example in unsafe if example.reply]
    most = min(len(given or unsafe), settings.head_examples)
    own = (
        ""
        if given
        else f", which the model writes itself in up to {4 * settings.max_new_tokens} tokens"
    )
    tries = len(settings.head.ranks) if settings.head.kind == "low_rank" else 1
    return (
        f"this fit: {len(rows):,} requests ({each}) of {read:,} tokens; replies of up to "
        f"{written:,} tokens; then the probers; then the head on up to {most:,} refusals{own}, "
        f"{tries} x {settings.head.epochs} epochs at most"
    )


def check_parts(parts: Mapping[str, Sequence[Example]], budget: float | None) -> None:
    """Refuse what cannot be fitted before the model has answered anything.

    Args:
        parts: Requests of train, validation and calibration.
        budget: FPR budget of a threshold set on the calibration part; None: none is set
            on it.

    Raises:
        DataError: a part is missing or empty.
        FitError: train or validation with one label only, or fewer ordinary calibration requests
            than ``budget`` needs.
    """
    empty = [name for name in PARTS if not parts.get(name)]
    if empty:
        raise DataError(
            f"fitting needs the parts {', '.join(PARTS)}; missing or empty: {', '.join(empty)}"
        )
    for name in ("train", "validation"):
        unsafe = sum(e.unsafe for e in parts[name])
        if unsafe in (0, len(parts[name])):
            only = "unsafe" if unsafe else "safe"
            raise FitError(
                f"{name}: needs unsafe and safe requests; all {len(parts[name])} are labelled "
                f"{only}"
            )
    ordinary = sum(e.ordinary for e in parts["calibration"])
    needed = safe_needed(budget) if budget is not None else 1
    if ordinary < needed:
        lookalikes = sum(not e.unsafe for e in parts["calibration"]) - ordinary
        what = "the record of safe scores" if budget is None else f"a budget of {budget:g}"
        larger = "" if budget is None else " or a larger budget"
        raise FitError(
            f"calibration: {what} needs at least {needed} safe requests in the calibration part; "
            f"got {ordinary}{' that are no look-alikes' if lookalikes else ''}; give more safe "
            f"requests{larger}"
        )


def _observe_all(
    engine: ReadingEngine,
    parts: Mapping[str, Sequence[Example]],
    answered: Mapping[str, Sequence[int]],
    plan: FitPlan,
    complied: Complied,
    say: Say,
    track: Track,
) -> dict[str, Observed]:
    observed = {}
    for name in PARTS:
        count = len(answered[name])
        rest = len(parts[name]) - count
        more = f" and reads the prompts of {rest} more" if rest else ""
        say(f"{name}: the base model answers {count} requests{more}")
        with track(len(parts[name]), f"{name}: answers and states") as advance:
            observed[name] = observe(
                engine,
                parts[name],
                plan.points,
                complied=complied,
                max_new_tokens=_reply_length(name, parts, plan),
                answered=answered[name],
                progress=advance,
            )
    return observed


def _reply_length(name: str, parts: Mapping[str, Sequence[Example]], plan: FitPlan) -> int:
    """Most reply tokens of a request of a part; replies to safe calibration requests are read, not
    judged."""
    judged = name != "calibration" or any(e.unsafe for e in parts[name])
    return plan.room if judged else plan.tokens_read


def fit_head(
    engine: ReadingEngine,
    train: Observed,
    validation: Observed,
    settings: FitSettings,
    *,
    complied: Complied,
    track: Track = untracked,
) -> HeadResult:
    """Train the refusal head on refusals of unsafe requests and the model's own replies to safe
    ones.

    Raises:
        FitError: no refusals to learn, or no reply to any safe request of a part.
    """
    lm, most = engine.lm, settings.head_examples
    states: list[ReplyStates] = []

    def read(prompts: Sequence[Prompt], replies: Sequence[str | Sequence[int]], what: str) -> None:
        with track(len(prompts), f"head, reading {what}") as advance:
            states.append(reply_states(lm, prompts, replies, progress=advance))

    for part, count in ((train, most), (validation, max(1, most // 4))):
        examples, refusals = refusal_pairs(
            engine,
            part.prompts.examples,
            complied=complied,
            most=count,
            max_new_tokens=settings.max_new_tokens,
            trust=settings.trust_replies,
            track=track,
        )
        safe = [
            (e, r.token_ids)
            for e, r in zip(part.examples, part.replies, strict=True)
            if not e.unsafe and r.text.strip()
        ][:count]
        if not safe:
            raise FitError(
                "the model's replies to safe requests are all white space; the head has nothing to "
                "stay close to"
            )
        read(examples, closed_first(lm, examples, refusals), "refusals")
        read([e for e, _ in safe], [ids for _, ids in safe], "own replies")
    data = HeadData(
        refusals=states[0], safe=states[1], refusals_validation=states[2], safe_validation=states[3]
    )
    return train_refusal_head(lm, data, settings.head, track=track)
