"""``safeswitch recalibrate``: a new bundle from verdicts on what a switch flagged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.options import BatchOption, SourceOptions, one_of, switch_folder
from safeswitch.cli.review import TrafficOptions, read_traffic
from safeswitch.cli.screen import put, say
from safeswitch.core.errors import SettingError
from safeswitch.core.json_types import JsonObject
from safeswitch.data.traffic import FRONT

if TYPE_CHECKING:
    from safeswitch.core.types import Example
    from safeswitch.data.reviews import ReviewVerdict
    from safeswitch.data.traffic import Traffic
    from safeswitch.switch.engine import ReadingEngine
    from safeswitch.switch.switch import Switch

_MAX_SHIFT = 3.0


@dataclass(frozen=True)
class ThresholdOptions:
    """How the threshold is set anew."""

    panel: ClassVar[str] = "Threshold"

    budget: Annotated[
        float | None,
        typer.Option(
            help="Fraction of all requests that may be false alarms. None: the budget of the fit."
        ),
    ] = None
    stage: Annotated[
        str,
        typer.Option(
            help="Whose threshold moves: stage1, stage2 or product. None: the gate's first.",
            autocompletion=one_of(*FRONT),
        ),
    ] = ""
    max_shift: Annotated[
        float,
        typer.Option(
            help="Furthest that the threshold may lie from where the fit set it, in log-odds."
        ),
    ] = _MAX_SHIFT
    per_day: Annotated[
        float, typer.Option(help="Requests a day for which false alarms are stated.")
    ] = 10_000
    passed_is_benign: Annotated[
        bool,
        typer.Option(
            "--passed-is-benign",
            help="Take all that was not flagged for benign; the threshold may then fall too.",
        ),
    ] = False


@dataclass(frozen=True)
class RefitOptions:
    """A new last layer instead of a new threshold alone."""

    panel: ClassVar[str] = "Last layer"

    refit_last: Annotated[
        bool,
        typer.Option(
            "--refit-last",
            help="Also fit the last layer of stage 1 anew, on what was reviewed beside the rows "
            "that the switch was calibrated on; needs --model, and texts in the audit.",
        ),
    ] = False
    model: Annotated[
        str | None,
        typer.Option(help="With --refit-last: the model of the switch, which reads each row once."),
    ] = None
    batch_size: BatchOption = 32


@dataclass(frozen=True)
class FittedOnOptions(SourceOptions):
    """The data of the switch's own fit."""

    panel: ClassVar[str] = (
        "With --refit-last: the data that the switch was fitted on, as fit took it"
    )


def recalibrate(
    recorded: TrafficOptions,
    threshold: ThresholdOptions,
    refit: RefitOptions,
    data: FittedOnOptions,
    reviews: Annotated[
        list[Path], typer.Option(help="File of verdicts (safeswitch review); repeat for more.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the new switch.")],
) -> None:
    """Set a switch's threshold anew from verdicts on what it flagged, and write a new bundle.

    The old bundle stays as it is. What was changed, expected false alarms a day and what is lost
    are printed and stand in the new bundle's card. With --refit-last, stage 1's last layer is
    fitted anew as well.
    """
    from safeswitch.core.artifact import check_writable
    from safeswitch.data.reviews import by_reviewer, read_reviews, reviews_hash, settled
    from safeswitch.switch.recalibrated import RECORD, sentences
    from safeswitch.switch.switch import Switch

    _check_together(threshold, refit, data)
    folder = switch_folder(recorded.switch)
    if out.exists() and Path(folder).exists() and out.samefile(folder):
        raise SettingError(f"recalibrate: --out {out} is the switch itself; name another folder")
    check_writable(out)
    old = Switch.from_pretrained(folder)
    said = [review for path in reviews for review in read_reviews(path)]
    reviewed: JsonObject = {
        "reviewers": by_reviewer(said),
        "reviews_hash": reviews_hash(said),
        "date": datetime.now(UTC).date().isoformat(),
    }
    seen, verdicts = read_traffic(recorded, old), settled(said, old.fingerprint)
    given = (old, seen, verdicts, threshold, reviewed)
    new = _new_layer(*given, refit, data) if refit.refit_last else _new_threshold(*given)
    new.save_pretrained(out)
    for sentence in sentences(new.record[RECORD][-1]):
        put(sentence)
    put(f"written to {out}: switch {new.fingerprint}")


def _check_together(
    threshold: ThresholdOptions, refit: RefitOptions, data: FittedOnOptions
) -> None:
    """Refuse options that would have no effect.

    Raises:
        SettingError: which, and with what they go.
    """
    if not refit.refit_last:
        given = {"model": refit.model, "data": data.data, "label": data.label, "limit": data.limit}
        for name, value in given.items():
            if value is not None:
                raise SettingError(f"recalibrate: --{name} goes with --refit-last alone")
        return
    if refit.model is None:
        raise SettingError("recalibrate: --refit-last needs --model, which reads the rows")
    if threshold.stage not in ("", "stage1"):
        raise SettingError(
            f"recalibrate: --refit-last fits stage1; --stage {threshold.stage} does not go with it"
        )
    if threshold.passed_is_benign or threshold.max_shift != _MAX_SHIFT:
        name = "passed-is-benign" if threshold.passed_is_benign else "max-shift"
        raise SettingError(
            f"recalibrate: --{name} is about the scores of the old layer; it does not go with "
            "--refit-last"
        )


def _new_threshold(
    old: Switch,
    seen: Traffic,
    verdicts: dict[str, ReviewVerdict],
    threshold: ThresholdOptions,
    reviewed: JsonObject,
) -> Switch:
    from safeswitch.fitting.recalibrate import RecalibrationSettings
    from safeswitch.fitting.recalibrate import recalibrate as set_anew

    settings = RecalibrationSettings(**asdict(threshold))
    return set_anew(old, seen, verdicts, settings, **reviewed)[0]


def _new_layer(
    old: Switch,
    seen: Traffic,
    verdicts: dict[str, ReviewVerdict],
    threshold: ThresholdOptions,
    reviewed: JsonObject,
    refit: RefitOptions,
    data: FittedOnOptions,
) -> Switch:
    from safeswitch.cli.load import model_folder
    from safeswitch.engines.transformers.engine import TransformersEngine
    from safeswitch.fitting.refit_last import RefitSettings, refit_last
    from safeswitch.fitting.refit_rows import calibration_rows
    from safeswitch.models.chat import ChatEncoder
    from safeswitch.models.turns import Turns

    assert refit.model is not None  # see _check_together
    engine = TransformersEngine.load(model_folder(refit.model), batch_size=refit.batch_size)
    old.check(engine.lm)
    rows = calibration_rows(_parts(engine, old, data), old)
    say(f"reading {len(rows)} rows of the calibration and what was reviewed")
    turns = Turns(ChatEncoder(engine.lm.tokenizer, refit.model))
    settings = RefitSettings(threshold.budget, threshold.per_day)
    return refit_last(engine, old, seen, verdicts, rows, turns, settings, **reviewed)[0]


def _parts(
    engine: ReadingEngine, switch: Switch, data: FittedOnOptions
) -> dict[str, list[Example]]:
    """The data of the fit, divided as then."""
    from safeswitch.data.splits import fit_split
    from safeswitch.fitting.files import fitting_requests, read_sources
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.nano.bench import parts
    from safeswitch.nano.suites import load_fit

    then = switch.record.get("settings") or {}
    seed = int(then.get("seed", 0))
    # ``safeswitch fit`` puts on record how many rows it read; nano's own switch was not made by it
    if "rows" not in switch.record and not data.data:
        return parts(load_fit(seed))
    read = read_sources(
        data.data or (), label=data.label, limit=data.limit, with_starter=data.with_starter
    )
    settings = FitSettings(seed=seed, max_new_tokens=int(then.get("reply_tokens", 32)))
    return fit_split(fitting_requests(engine, read, settings, say), seed)
