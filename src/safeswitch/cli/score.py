"""``safeswitch score``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.load import load_engine, load_switch
from safeswitch.cli.measured import file_identity, vllm_engine
from safeswitch.cli.options import (
    ENGINES,
    BatchedModelOptions,
    JsonOption,
    ModelOptions,
    OtherModelOption,
    RequestOptions,
    one_of,
)
from safeswitch.cli.screen import bar, put_json, say
from safeswitch.core.errors import check_choice

if TYPE_CHECKING:
    from safeswitch.core.types import Decision, Prompt
    from safeswitch.switch.engine import MeasuredEngine
    from safeswitch.switch.switch import Switch


@dataclass(frozen=True)
class ReaderOptions:
    """What reads the requests."""

    panel: ClassVar[str] = ModelOptions.panel

    switch: Annotated[
        str,
        typer.Option(help="Switch folder or hub id; 'nano' is the embedded model's own."),
    ]
    allow_other_model: OtherModelOption = False
    engine: Annotated[
        str, typer.Option(help="transformers or vllm.", autocompletion=one_of(*ENGINES))
    ] = "transformers"


def score(
    model: BatchedModelOptions,
    reader: ReaderOptions,
    requests: RequestOptions,
    as_json: JsonOption = False,
) -> None:
    """Read a file of requests with stage 1 of a switch, and answer none; resumable.

    Each row says whether the request is flagged, with the decision; a request that the model cannot
    take gets a row with the field 'error'.
    """
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.jsonl import Screening, decision_fields, generate_file

    check_choice("command line", "engine", reader.engine, ENGINES)
    examples = read_examples(
        requests.source, label=requests.label, labelled=False, limit=requests.limit
    )
    switch = load_switch(reader.switch)
    opened = _vllm if reader.engine == "vllm" else _transformers
    with opened(model, reader) as (engine, read), bar(len(examples), "reading") as advance:
        done = generate_file(
            Screening(lambda prompts: read(prompts, switch)),
            examples,
            requests.out,
            identity=file_identity(engine.facts, switch),
            chunk=2 * model.batch_size,
            progress=advance,
            fields=decision_fields,
        )
    if as_json:
        put_json({"out": str(requests.out), **asdict(done)}, indent=2)
    say(
        f"{done.new} new rows, {done.rows} in all, {done.errors} of them with an error "
        f"in place of a decision, in {requests.out}"
    )


Opened = tuple["MeasuredEngine", Callable[[Sequence["Prompt"], "Switch"], list["Decision"]]]
"""The engine, and what reads requests with it."""


@contextmanager
def _transformers(model: BatchedModelOptions, reader: ReaderOptions) -> Iterator[Opened]:
    from safeswitch.engines.transformers.screen import screen

    engine = load_engine(
        model, batch_size=model.batch_size, allow_other_model=reader.allow_other_model
    )
    yield engine, partial(screen, engine)


@contextmanager
def _vllm(model: BatchedModelOptions, reader: ReaderOptions) -> Iterator[Opened]:
    arguments = {"max_num_seqs": model.batch_size}
    with vllm_engine(model, reader.allow_other_model, arguments) as engine:
        yield engine, engine.screen
