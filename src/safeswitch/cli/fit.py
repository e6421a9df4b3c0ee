"""``safeswitch fit``."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from safeswitch.cli.inspect import show_card
from safeswitch.cli.load import load_collector, load_engine
from safeswitch.cli.options import (
    ENGINES,
    BatchedModelOptions,
    BudgetOption,
    JsonOption,
    LeaveOutOption,
    SeedOption,
    SourceOptions,
    one_of,
)
from safeswitch.cli.screen import bar, put_json, say
from safeswitch.core.errors import check_choice
from safeswitch.core.grammar import entries

if TYPE_CHECKING:
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.switch.engine import ReadingEngine


@dataclass(frozen=True)
class DataOptions(SourceOptions):
    """What is fitted on."""

    trust_replies: Annotated[
        bool,
        typer.Option(
            "--trust-replies",
            help="Take the replies of unsafe rows as refusals, whatever their words.",
        ),
    ] = False


@dataclass(frozen=True)
class GateOptions:
    """How the gate decides."""

    panel: ClassVar[str] = "Gate"

    budget: BudgetOption = 0.02
    stages: Annotated[
        str,
        typer.Option(
            help="two, stage1 or direct.", autocompletion=one_of("two", "stage1", "direct")
        ),
    ] = "two"
    rule: Annotated[
        str,
        typer.Option(help="auto, and, product.", autocompletion=one_of("auto", "and", "product")),
    ] = "auto"
    pilot: Annotated[int, typer.Option(min=0, help="Pilot tokens before stage 2.")] = 3
    pilot_from: Annotated[
        str,
        typer.Option(
            help="reply, or answer: counted from the end of a model's thinking.",
            autocompletion=one_of("reply", "answer"),
        ),
    ] = "reply"
    max_new_tokens: Annotated[
        int,
        typer.Option(min=1, help="Length of the replies that are judged, thinking included."),
    ] = 32
    answered: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most requests of each part that the model answers; of the others stage 1 reads "
            "the prompt alone.",
        ),
    ] = 1600
    readers: Annotated[
        str,
        typer.Option(
            help="What stage 1 fuses, joined by commas: steps, means, outputs, layers, window, "
            "text, another prober by its name, or file.py:Name."
        ),
    ] = "steps"
    calibrate: Annotated[
        str,
        typer.Option(
            help="Stage 1's threshold from: pooled requests, or sources left out.",
            autocompletion=one_of("pooled", "sources"),
        ),
    ] = "pooled"
    watch: Annotated[bool, typer.Option("--watch", help="Also watch the running reply.")] = False
    fail: Annotated[
        str,
        typer.Option(
            help="closed: a prober that cannot run fires; open: it lets pass.",
            autocompletion=one_of("closed", "open"),
        ),
    ] = "closed"


@dataclass(frozen=True)
class HeadOptions:
    """The refusal head."""

    panel: ClassVar[str] = "Refusal head"

    head: Annotated[
        str,
        typer.Option(
            help="Refusal head: low_rank or full.", autocompletion=one_of("low_rank", "full")
        ),
    ] = "low_rank"
    beta: Annotated[
        float, typer.Option(help="Fraction of the head's difference in force, 0 to 1.")
    ] = 1.0


@dataclass(frozen=True)
class FitRunOptions:
    """Where the switch goes, and how the work is done."""

    panel: ClassVar[str] = "Run"

    out: Annotated[Path, typer.Option("--out", help="Folder for the switch.")]
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="transformers, or vllm, which answers and reads much faster on a GPU.",
            autocompletion=one_of(*ENGINES),
        ),
    ] = "transformers"
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the model's answers and activations, from which a fit that was "
            "cut off is resumed."
        ),
    ] = None
    seed: SeedOption = 0


def fit(
    model: BatchedModelOptions,
    run: FitRunOptions,
    data: DataOptions,
    gate: GateOptions,
    head: HeadOptions,
    leave_out: LeaveOutOption = True,
    as_json: JsonOption = False,
) -> None:
    """Fit a switch on labelled requests and the starter set, and write it to a folder."""
    from safeswitch.fitting.files import fit_files

    settings = _settings(gate, head, data, run.seed)
    check_choice("command line", "engine", run.engine, ENGINES)
    with ExitStack() as stack:
        switch = fit_files(
            _engine(model, run, settings, stack),
            data.data or (),
            run.out,
            settings,
            label=data.label,
            limit=data.limit,
            with_starter=data.with_starter,
            leave_out=leave_out,
            say=say,
            track=bar,
        )
    if as_json:
        made = {"out": str(run.out), "fingerprint": switch.fingerprint}
        put_json({**made, "switch": switch.describe()}, indent=2)
    else:
        show_card(switch)
    say(f"written to {run.out}")


def _engine(
    model: BatchedModelOptions, run: FitRunOptions, settings: FitSettings, stack: ExitStack
) -> ReadingEngine:
    """What answers and reads the requests; ``stack`` closes what has to be closed."""
    from safeswitch.fitting.kept import Kept

    engine: ReadingEngine
    if run.engine == "vllm":
        engine = stack.enter_context(closing(load_collector(model, settings)))
    else:
        engine = load_engine(model, batch_size=model.batch_size)
    return engine if run.keep is None else stack.enter_context(Kept(engine, run.keep))


def _settings(gate: GateOptions, head: HeadOptions, data: DataOptions, seed: int) -> FitSettings:
    """The settings that the options make.

    Raises:
        SettingError: a value outside its limits.
    """
    from safeswitch.fitting.refusal_head import HeadSettings
    from safeswitch.fitting.settings import FitSettings
    from safeswitch.probers.base import PROBERS

    # the settings themselves refuse words that are not among theirs
    return FitSettings(
        budget=gate.budget,
        stages=gate.stages,  # type: ignore[arg-type]
        rule=gate.rule,  # type: ignore[arg-type]
        pilot=gate.pilot,
        pilot_from=gate.pilot_from,  # type: ignore[arg-type]
        max_new_tokens=gate.max_new_tokens,
        answered=gate.answered,
        readers=entries("--readers", PROBERS.from_files(gate.readers)),
        calibrate=gate.calibrate,  # type: ignore[arg-type]
        watch=gate.watch,
        fail=gate.fail,  # type: ignore[arg-type]
        trust_replies=data.trust_replies,
        head=HeadSettings(kind=head.head, beta=head.beta, seed=seed),  # type: ignore[arg-type]
        seed=seed,
    )
