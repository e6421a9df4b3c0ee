"""``safeswitch recalibrate``: a new bundle from verdicts on what a switch flagged."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from safeswitch.cli.options import one_of, switch_folder
from safeswitch.cli.review import TrafficOptions, read_traffic
from safeswitch.cli.screen import put
from safeswitch.core.errors import SettingError
from safeswitch.data.traffic import FRONT


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
    ] = 3.0
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


def recalibrate(
    recorded: TrafficOptions,
    threshold: ThresholdOptions,
    reviews: Annotated[
        list[Path], typer.Option(help="File of verdicts (safeswitch review); repeat for more.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the new switch.")],
) -> None:
    """Set a switch's threshold anew from verdicts on what it flagged, and write a new bundle.

    The old bundle stays as it is. What was changed, expected false alarms a day and what is lost
    are printed and stand in the new bundle's card.
    """
    from safeswitch.core.artifact import check_writable
    from safeswitch.data.reviews import by_reviewer, read_reviews, reviews_hash, settled
    from safeswitch.fitting.recalibrate import RecalibrationSettings
    from safeswitch.fitting.recalibrate import recalibrate as set_anew
    from safeswitch.switch.recalibrated import RECORD, sentences
    from safeswitch.switch.switch import Switch

    chosen = RecalibrationSettings(**asdict(threshold))
    folder = switch_folder(recorded.switch)
    if out.exists() and Path(folder).exists() and out.samefile(folder):
        raise SettingError(f"recalibrate: --out {out} is the switch itself; name another folder")
    check_writable(out)
    old = Switch.from_pretrained(folder)
    said = [review for path in reviews for review in read_reviews(path)]
    new, _ = set_anew(
        old,
        read_traffic(recorded, old),
        settled(said, old.fingerprint),
        chosen,
        reviewers=by_reviewer(said),
        reviews_hash=reviews_hash(said),
        date=datetime.now(UTC).date().isoformat(),
    )
    new.save_pretrained(out)
    for sentence in sentences(new.record[RECORD][-1]):
        put(sentence)
    put(f"written to {out}: switch {new.fingerprint}")
