"""``safeswitch generate``."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.load import load_engine, load_guard
from safeswitch.cli.options import (
    BatchedModelOptions,
    DecodingOptions,
    JsonOption,
    LabelOption,
    SwitchOptions,
)
from safeswitch.cli.screen import bar, put_json, say

if TYPE_CHECKING:
    from safeswitch.engines.transformers.engine import TransformersEngine
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
    model: BatchedModelOptions,
    guard: SwitchOptions,
    requests: RequestOptions,
    decoding: DecodingOptions,
    as_json: JsonOption = False,
) -> None:
    """Answer a file of requests; resumable.

    A request that the model cannot take gets a row with the field 'error'.
    """
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.jsonl import generate_file

    asked = decoding.for_engine()
    examples = read_examples(
        requests.source, label=requests.label, labelled=False, limit=requests.limit
    )
    engine = load_engine(
        model, batch_size=model.batch_size, allow_other_model=guard.allow_other_model
    )
    switch = load_guard(guard.switch)
    with bar(len(examples), "answering") as advance:
        done = generate_file(
            engine,
            examples,
            requests.out,
            switch,
            identity=_identity(engine, switch),
            chunk=2 * model.batch_size,
            progress=advance,
            **asked,
        )
    if as_json:
        put_json({"out": str(requests.out), **asdict(done)}, indent=2)
    say(
        f"{done.new} new rows, {done.rows} in all, {done.errors} of them with an error "
        f"in place of a reply, in {requests.out}"
    )


def _identity(engine: TransformersEngine, switch: Switch | None) -> dict[str, str]:
    """What must be the same for a file of replies to be resumed."""
    template = str(engine.lm.chat_template).encode()
    return {
        "model": engine.lm.fingerprint,
        "switch": switch.fingerprint if switch is not None else "none",
        "chat template": hashlib.sha256(template).hexdigest()[:16],
        "dtype": str(engine.lm.model.dtype),
    }
