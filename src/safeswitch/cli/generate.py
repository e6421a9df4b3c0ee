"""``safeswitch generate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.load import load_guard
from safeswitch.cli.measured import measured_engine, runs_in
from safeswitch.cli.options import (
    DecodingOptions,
    JsonOption,
    LabelOption,
    MeasuredModelOptions,
    SwitchOptions,
)
from safeswitch.cli.screen import bar, put_json, say

if TYPE_CHECKING:
    from safeswitch.switch.engine import EngineFacts
    from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class RequestOptions:
    """Which requests are answered, and where the replies go."""

    panel: ClassVar[str] = "Requests"

    source: Annotated[
        str, typer.Option("--in", help="JSONL or CSV file of requests, or hub data set.")
    ]
    out: Annotated[
        Path, typer.Option("--out", help="JSONL file of replies; an unfinished one is resumed.")
    ]
    label: LabelOption = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = (
        None
    )


def generate(
    model: MeasuredModelOptions,
    guard: SwitchOptions,
    requests: RequestOptions,
    decoding: DecodingOptions,
    as_json: JsonOption = False,
) -> None:
    """Answer a file of requests; resumable.

    A request that the model cannot take gets a row with the field 'error'.
    """
    from safeswitch.bench.candidates import check_engine
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.jsonl import generate_file

    asked = decoding.for_engine()
    examples = read_examples(
        requests.source, label=requests.label, labelled=False, limit=requests.limit
    )
    switch = load_guard(guard.switch)
    check_engine(("base",) if switch is None else ("safeswitch",), runs_in(model), switch)
    with (
        measured_engine(model, allow_other_model=guard.allow_other_model) as engine,
        bar(len(examples), "answering") as advance,
    ):
        done = generate_file(
            engine,
            examples,
            requests.out,
            switch,
            identity=_identity(engine.facts, switch),
            chunk=engine.facts.chunk,
            progress=advance,
            **asked,
        )
    if as_json:
        put_json({"out": str(requests.out), **asdict(done)}, indent=2)
    say(
        f"{done.new} new rows, {done.rows} in all, {done.errors} of them with an error "
        f"in place of a reply, in {requests.out}"
    )


def _identity(facts: EngineFacts, switch: Switch | None) -> dict[str, str]:
    """What must be the same for a file of replies to be resumed."""
    from safeswitch.bench.bench import identity_of

    known = {name.replace("_", " "): str(value) for name, value in identity_of(facts).items()}
    return {**known, "switch": switch.fingerprint if switch is not None else "none"}
