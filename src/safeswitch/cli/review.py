"""``safeswitch review``: what a switch flagged in real traffic, and what people say of it."""

from __future__ import annotations

import getpass
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.audit import SinceOption, UrlOption
from safeswitch.cli.options import one_of, switch_folder
from safeswitch.cli.screen import put, put_json, say
from safeswitch.core.errors import DataError, SettingError, check_choice

if TYPE_CHECKING:
    from safeswitch.data.reviews import ReviewVerdict
    from safeswitch.data.traffic import FlaggedText, Traffic
    from safeswitch.switch.switch import Switch

ORDERS = ("nearest", "random")
_ANSWERS: dict[str, ReviewVerdict] = {"r": "right", "f": "false_alarm", "u": "unsure"}
_HOW = "[r]ight, [f]alse alarm, [u]nsure, [s]kip, [q]uit"
_LOCK_S = 5.0


@dataclass(frozen=True)
class TrafficOptions:
    """Which recorded decisions."""

    panel: ClassVar[str] = "Traffic"

    url: UrlOption
    switch: Annotated[
        str, typer.Option(help="The switch that was observed: folder, hub id or 'nano'.")
    ]
    since_days: SinceOption = None


def review(
    recorded: TrafficOptions,
    reviews: Annotated[
        Path, typer.Option(help="JSONL file of verdicts; a second run goes on with it.")
    ],
    by: Annotated[str, typer.Option(help="Who gives the verdicts. None: your login name.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most rows to show.")] = 50,
    order: Annotated[
        str,
        typer.Option(
            help="nearest: to the threshold first; random: over all that was flagged.",
            autocompletion=one_of(*ORDERS),
        ),
    ] = "nearest",
    json: Annotated[
        bool, typer.Option("--json", help="Print the rows as JSON lines and ask nothing.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the rows as a page and ask nothing.")
    ] = None,
    imported: Annotated[
        Path | None,
        typer.Option(
            "--import", help="JSONL file of verdicts that were given elsewhere; asks nothing."
        ),
    ] = None,
) -> None:
    """Show what was flagged, nearest to the threshold first, and take a verdict on each.

    What was flagged comes from the audit of a server that observes (or enforces) with this switch,
    best with --audit-text. Verdicts hold the hash of a text, never the text. Give random order to
    learn about all that was flagged; the nearest alone tell nothing of the rest.
    """
    from safeswitch.data.reviews import read_reviews, settled
    from safeswitch.switch.switch import Switch

    check_choice("review", "order", order, ORDERS)
    if sum((json, html is not None, imported is not None)) > 1:
        raise SettingError("review: --json, --html and --import each go alone")
    observed = Switch.from_pretrained(switch_folder(recorded.switch))
    seen = read_traffic(recorded, observed)
    own = observed.fingerprint
    if imported is not None:
        _import(imported, reviews, seen, {"by": _name(by), "at": time.time(), "switch": own})
        return
    given = settled(read_reviews(reviews) if reviews.exists() else [], own)
    if json or html is not None:
        _show(_ordered(seen.flagged, order, own)[:limit], given, seen, own, html)
        return
    left = [one for one in seen.flagged if one.text_sha256 not in given]
    put(
        f"{len(seen.flagged)} texts flagged in {seen.requests} requests; "
        f"{len(seen.flagged) - len(left)} have a verdict"
    )
    _ask(_ordered(left, order, own)[:limit], reviews, _name(by), own)


def read_traffic(recorded: TrafficOptions, switch: Switch) -> Traffic:
    """Recorded decisions of a switch.

    Raises:
        SettingError: no such database, or a package of the server is not installed.
        DataError: no record can be used.
    """
    from safeswitch.data.traffic import traffic

    try:
        from safeswitch.serving.audit import Audit, days_ago
    except ModuleNotFoundError as error:
        raise SettingError(
            f"the audit needs {error.name}: pip install 'safeswitch[server]'"
        ) from error
    since = days_ago(recorded.since_days)
    with closing(Audit(recorded.url)) as store:
        return traffic(store.export(since=since), switch.fingerprint, switch.gate.thresholds())


def _name(by: str) -> str:
    try:
        return by or getpass.getuser()
    except (OSError, KeyError) as error:  # a process without a login name
        raise SettingError("review: name who gives the verdicts with --by") from error


def _ordered(rows: Sequence[FlaggedText], order: str, seed: str) -> list[FlaggedText]:
    """Rows as they are shown; random order is the same in every run of one switch, so that a second
    run goes on in it."""
    if order == "nearest":
        return list(rows)

    def place(one: FlaggedText) -> float:
        return random.Random(f"{seed}{one.text_sha256}").random()

    return sorted(rows, key=place)


def _import(source: Path, reviews: Path, seen: Traffic, absent: dict[str, object]) -> None:
    from safeswitch.data.reviews import add_reviews, import_reviews

    found = import_reviews(source, absent, [one.text_sha256 for one in seen.flagged])
    add_reviews(reviews, found)
    put(f"{len(found)} verdicts added to {reviews}")


def _show(
    rows: Sequence[FlaggedText],
    given: dict[str, ReviewVerdict],
    seen: Traffic,
    switch_id: str,
    html: Path | None,
) -> None:
    shown = [
        {**one.to_dict(), "verdict": given.get(one.text_sha256), "switch": switch_id}
        for one in rows
    ]
    if html is None:
        for row in shown:
            put_json(row)
        return
    from safeswitch.report.review_page import write_review_page

    write_review_page(html, shown, seen)
    put(f"{len(shown)} of {len(seen.flagged)} flagged texts written to {html}")


def _ask(rows: Sequence[FlaggedText], reviews: Path, by: str, switch_id: str) -> None:
    """Show row by row and write each verdict as it is given."""
    from safeswitch.data.reviews import Review, add_reviews

    if rows and all(one.text is None for one in rows):
        raise DataError(
            "review: the audit holds no texts to look at; serve with --audit-text, or give "
            "verdicts on the hashes with --import"
        )
    said = 0
    for number, one in enumerate(rows, 1):
        put(_described(one, f"{number} of {len(rows)}"))
        answer = _answer()
        if answer == "q":
            break
        if answer != "s":
            verdict = Review(one.text_sha256, _ANSWERS[answer], by, time.time(), switch_id)
            add_reviews(reviews, [verdict], wait_s=_LOCK_S)  # the page may be adding its own
            said += 1
    put(f"{said} verdicts added to {reviews}")


def _described(one: FlaggedText, place: str) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in one.scores.items())
    text = one.text if one.text is not None else f"(no text kept; sha256 {one.text_sha256})"
    return (
        f"\n[{place}] flagged at {one.stage}, {one.margin:.3f} above the threshold ({scores}), "
        f"{one.times} times\n{text}"
    )


def _answer() -> str:
    """One of the letters; the end of input is to quit."""
    while True:
        say(_HOW)
        try:
            answer = input("> ").strip().lower()[:1]
        except EOFError:
            return "q"
        if answer in (*_ANSWERS, "s", "q"):
            return answer
