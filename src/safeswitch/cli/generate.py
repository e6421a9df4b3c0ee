"""``safeswitch generate``."""

from __future__ import annotations

from dataclasses import asdict

from safeswitch.cli.load import load_guard
from safeswitch.cli.measured import file_identity, measured_engine, runs_in
from safeswitch.cli.options import (
    DecodingOptions,
    JsonOption,
    MeasuredModelOptions,
    RequestOptions,
    SwitchOptions,
)
from safeswitch.cli.screen import bar, put_json, say


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
            identity=file_identity(engine.facts, switch),
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
