"""Options that several commands share: single ones, and groups that a command takes as one object.

A group is a dataclass; :func:`safeswitch.cli.command.add` makes its fields options of the command.
Knows nothing of what is done with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from safeswitch.core.errors import SettingError, check_choice
from safeswitch.core.json_types import JsonObject

OTHER = "Other"
"""Panel of the options that most commands have."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("transformers", "vllm")
_LARGEST_SEED = 2**63 - 1


def one_of(*values: str) -> Callable[[str], list[str]]:
    """What the shell offers for an option that takes one of a few words."""

    def matching(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return matching


def _seed(value: int) -> int:
    if value > _LARGEST_SEED:
        raise typer.BadParameter(f"{value} is not in the range 0<=x<={_LARGEST_SEED}.")
    return value


SeedOption = Annotated[int, typer.Option(min=0, callback=_seed, help="Seed of everything drawn.")]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON object about what was done.", rich_help_panel=OTHER
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option(
        help="Label of rows that have none: safe or unsafe.",
        autocompletion=one_of("safe", "unsafe"),
    ),
]
BudgetOption = Annotated[
    float,
    typer.Option(
        help="False positive rate (FPR) that the gate may have on ordinary requests, as 0.01."
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help=(
            "Hub id, model folder, PEFT adapter folder or GGUF file; 'nano' is the embedded model."
        ),
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of the model on the hub.")]
DtypeOption = Annotated[
    str,
    typer.Option(help="auto, float32, bfloat16 or float16.", autocompletion=one_of(*DTYPES)),
]
DeviceMapOption = Annotated[
    str | None, typer.Option(help="Where the model goes, as in transformers: auto, cuda, cpu.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="Jinja chat template file, or 'plain' for base models. None: the tokenizer's."
    ),
]
SwitchOption = Annotated[
    str | None,
    typer.Option(
        "--switch",
        help="Switch folder or hub id; 'nano' is the embedded model's own. None: no guard.",
    ),
]
OtherModelOption = Annotated[
    bool,
    typer.Option("--allow-other-model", help="Accept a switch that was fitted on other weights."),
]
FitDataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fit-data",
        help="File or hub data set to fit methods on; repeat for more. None: nano's own.",
    ),
]
LeaveOutOption = Annotated[
    bool, typer.Option(help="Report every source with its leave-one-out figure.")
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Largest number of rows decoded together.")
]
TokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest reply in tokens.")
]


@dataclass(frozen=True)
class SourceOptions:
    """Labelled requests, as a switch is fitted on them."""

    panel: ClassVar[str] = "Data"

    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help=(
                "JSONL or CSV file, or hub data set; repeat for more. None: the starter set alone."
            ),
        ),
    ] = None
    without_starter: Annotated[
        bool,
        typer.Option(
            "--without-starter",
            help="Fit on --data alone, without the starter set; false alarms on new traffic rise.",
        ),
    ] = False
    label: LabelOption = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most rows of each source that rows name, spread evenly."),
    ] = None

    def __post_init__(self) -> None:
        if not self.data and self.without_starter:
            raise SettingError(
                "command line: --without-starter needs --data, or there is nothing to fit on"
            )

    @property
    def with_starter(self) -> bool:
        """Whether the starter set is added to the data."""
        return bool(self.data) and not self.without_starter


@dataclass(frozen=True)
class ModelOptions:
    """Which model is loaded, and how."""

    panel: ClassVar[str] = "Model and switch"

    model: ModelOption
    revision: RevisionOption = None
    dtype: DtypeOption = "auto"
    device_map: DeviceMapOption = None
    chat_template: TemplateOption = None
    trust_remote_code: TrustOption = False


@dataclass(frozen=True)
class BatchedModelOptions(ModelOptions):
    """A model that answers many requests."""

    batch_size: BatchOption = 32


@dataclass(frozen=True)
class MeasuredModelOptions(BatchedModelOptions):
    """The model under test: loaded here by one of the engines, or behind a server."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Hub id, model folder, PEFT adapter folder or GGUF file; 'nano' is the embedded "
            "model. None: --url.",
        ),
    ] = ""
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            min=1,
            help="Largest number of rows decoded together; at a server, of requests in flight. "
            "vLLM has its own.",
        ),
    ] = 32
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            help="transformers, or vllm, which answers much faster on a GPU and runs base, head "
            "and safeswitch with --switch.",
            autocompletion=one_of(*ENGINES),
        ),
    ] = "transformers"
    vllm_args: Annotated[
        str | None,
        typer.Option(
            "--vllm-args",
            help="Arguments of vLLM's engine as JSON, as '{\"max_model_len\": 4096}'.",
        ),
    ] = None
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="An OpenAI-compatible server up to /v1, ours or another's; its key in "
            "SAFESWITCH_KEY_<HOST>.",
        ),
    ] = None
    served_model: Annotated[
        str | None, typer.Option("--served-model", help="Name of the model at --url.")
    ] = None


@dataclass(frozen=True)
class RequestOptions:
    """A file of requests, and the file that is made of it."""

    panel: ClassVar[str] = "Requests"

    source: Annotated[
        str, typer.Option("--in", help="JSONL or CSV file of requests, or hub data set.")
    ]
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="JSONL file to write, a row a request; an unfinished one is resumed."
        ),
    ]
    label: LabelOption = None
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many requests.")] = (
        None
    )


@dataclass(frozen=True)
class SwitchOptions:
    """What guards the model."""

    panel: ClassVar[str] = ModelOptions.panel

    switch: SwitchOption = None
    allow_other_model: OtherModelOption = False


@dataclass(frozen=True)
class DecodingOptions:
    """How replies are generated."""

    panel: ClassVar[str] = "Decoding"

    max_new_tokens: TokensOption = 256
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of greedy decoding.")] = (
        False
    )
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature, above 0; with --sample.")
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Nucleus sampling mass, above 0 and at most 1; with --sample."),
    ] = None
    seed: SeedOption = 0
    hide_thinking: Annotated[
        bool,
        typer.Option("--hide-thinking", help="Leave a reasoning model's thinking out of replies."),
    ] = False
    thinking_budget: Annotated[
        int | None, typer.Option("--thinking-budget", min=0, help="End thinking after N tokens.")
    ] = None

    def for_engine(self) -> JsonObject:
        """The options of the engine's ``generate`` and ``stream`` that these make.

        Raises:
            SettingError: a value outside its range, or one without effect unless ``--sample``.
        """
        asked: JsonObject = self._sampling()
        asked["max_new_tokens"] = self.max_new_tokens
        asked["seed"] = self.seed if self.sample else None
        if self.hide_thinking:
            asked["show_thinking"] = False
        if self.thinking_budget is not None:
            asked["thinking_budget"] = self.thinking_budget
        return asked

    def _sampling(self) -> JsonObject:
        settings = {"temperature": self.temperature, "top_p": self.top_p}
        given = {name: value for name, value in settings.items() if value is not None}
        if given and not self.sample:
            named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingError(
                f"command line: {named} would have no effect without --sample; "
                "add --sample or leave it out"
            )
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise SettingError(
                f"command line: --temperature must be above 0 and finite; got {self.temperature}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SettingError(
                f"command line: --top-p must be above 0 and at most 1; got {self.top_p}"
            )
        return {"do_sample": self.sample, **given}


@dataclass(frozen=True)
class RunOptions:
    """What a run is made on, and where it is kept."""

    panel: ClassVar[str] = "Run"

    out: Annotated[
        Path, typer.Option("--out", help="Run folder; an unfinished run there is resumed.")
    ]
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", help="A benchmark in place of the suite's; repeat for more."),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of benchmark files, one <name>.jsonl each."),
    ] = None
    hub: Annotated[
        bool,
        typer.Option("--hub", help="Ask the hub for benchmarks that the folder does not hold."),
    ] = False
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests of each benchmark, drawn at random."),
    ] = None
    seed: SeedOption = 0


@dataclass(frozen=True)
class SuiteRunOptions(RunOptions):
    """A run on a whole suite of benchmarks."""

    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            help="nano, quick, paper or full.",
            autocompletion=one_of("nano", "quick", "paper", "full"),
        ),
    ] = "quick"
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            min=1,
            help="Longest reply in tokens. None: each benchmark's own.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="Answer only part i of n, as 2/8; the command without it then puts all parts "
            "together.",
        ),
    ] = None
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            help="A further judge, llama-guard:MODEL or openai:MODEL@URL with its key in "
            "SAFESWITCH_KEY_<HOST>; repeat for more.",
        ),
    ] = None


def chosen_engine(asked: str) -> str:
    """The engine that is asked for, or vLLM where it is installed; says which if nobody asked."""
    if asked:
        check_choice("command line", "engine", asked, ENGINES)
        return asked
    chosen = "vllm" if find_spec("vllm") is not None else "transformers"
    typer.echo(f"engine: {chosen} (--engine {' or '.join(ENGINES)} chooses)", err=True)
    return chosen


def switch_folder(name: str) -> str:
    """The folder that ``--switch`` means: ``nano`` is the embedded model's own."""
    from safeswitch.nano import switch_path

    return str(switch_path()) if is_nano(name) else name


def is_nano(name: str) -> bool:
    """Whether a model or switch is the embedded one.

    Raises:
        SettingError: a folder of that name stands here, and may be meant.
    """
    if name == "nano" and Path(name).is_dir():
        raise SettingError(
            "'nano' is the embedded model, and a folder here; "
            "write ./nano for the folder, or run elsewhere for the model"
        )
    return name == "nano"
