"""``safeswitch score``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.load import load_engine, load_switch, model_folder
from safeswitch.cli.options import (
    ENGINES,
    BatchedModelOptions,
    JsonOption,
    LabelOption,
    ModelOptions,
    OtherModelOption,
    one_of,
    switch_folder,
)
from safeswitch.cli.screen import bar, put_json, say
from safeswitch.core.errors import SettingError, check_choice

if TYPE_CHECKING:
    from safeswitch.engines.screening import Screen


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


@dataclass(frozen=True)
class ReadOptions:
    """Which requests are read, and where the decisions go."""

    panel: ClassVar[str] = "Requests"

    source: Annotated[
        str, typer.Option("--in", help="JSONL or CSV file of requests, or hub data set.")
    ]
    out: Annotated[
        Path, typer.Option("--out", help="JSONL file of decisions; an unfinished one is resumed.")
    ]
    label: LabelOption = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = (
        None
    )


def score(
    model: BatchedModelOptions,
    reader: ReaderOptions,
    requests: ReadOptions,
    as_json: JsonOption = False,
) -> None:
    """Read a file of requests with stage 1 of a switch, and answer none; resumable.

    Each row says whether the request is flagged, with the decision; a request that the model cannot
    take gets a row with the field 'error'.
    """
    from safeswitch.data.readers import read_examples
    from safeswitch.engines.jsonl import generate_file
    from safeswitch.engines.screening import Screening, decision_fields

    check_choice("command line", "engine", reader.engine, ENGINES)
    examples = read_examples(
        requests.source, label=requests.label, labelled=False, limit=requests.limit
    )
    opened = _vllm if reader.engine == "vllm" else _transformers
    with opened(model, reader) as (screen, identity), bar(len(examples), "reading") as advance:
        done = generate_file(
            Screening(screen),
            examples,
            requests.out,
            identity=identity,
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


Opened = tuple["Screen", dict[str, str]]
"""What reads, and what must be the same for a file of decisions to be resumed."""


@contextmanager
def _transformers(model: BatchedModelOptions, reader: ReaderOptions) -> Iterator[Opened]:
    from safeswitch.engines.transformers.screen import screen

    engine = load_engine(
        model, batch_size=model.batch_size, allow_other_model=reader.allow_other_model
    )
    switch = load_switch(reader.switch)
    switch.check(engine.lm, allow_other_model=reader.allow_other_model)
    template = str(engine.lm.chat_template).encode()
    yield (
        partial(screen, engine, switch=switch),
        {
            "model": engine.lm.fingerprint,
            "switch": switch.fingerprint,
            "chat template": hashlib.sha256(template).hexdigest()[:16],
            "dtype": str(engine.lm.model.dtype),
        },
    )


@contextmanager
def _vllm(model: BatchedModelOptions, reader: ReaderOptions) -> Iterator[Opened]:
    from safeswitch.models.chat import read_template
    from safeswitch.models.fingerprint import fingerprint_of_files

    try:
        from safeswitch.engines.vllm.engine import VLLMEngine
    except ModuleNotFoundError as error:
        raise SettingError(
            f"--engine vllm needs {error.name}: pip install 'safeswitch[vllm]'"
        ) from error
    folder, template = model_folder(model.model), read_template(model.chat_template)
    switch = load_switch(reader.switch)
    engine = VLLMEngine(
        folder,
        switch_folder(reader.switch),
        allow_other_model=reader.allow_other_model,
        chat_template=template,
        revision=model.revision,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
        max_num_seqs=model.batch_size,
    )
    with engine:
        yield (
            engine.screen,
            {
                "model": fingerprint_of_files(folder, model.revision),
                "switch": switch.fingerprint,
                "chat template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
                "dtype": f"vllm {engine.llm.model_config.dtype}",
            },
        )
