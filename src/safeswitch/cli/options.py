"""Options that several commands share. Knows nothing of what is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.core.errors import SettingError

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Hub id, model folder, PEFT adapter folder or GGUF file; 'nano' is the embedded model.",
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")
]
SwitchOption = Annotated[
    str | None,
    typer.Option("--switch", help="Switch folder or hub id; 'nano' is the embedded model's own; none: the untouched model."),
]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of the model on the hub.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceMapOption = Annotated[str | None, typer.Option(help="Where the model goes, as in transformers: auto, cuda, cpu.")]
TemplateOption = Annotated[
    str | None, typer.Option(help="Jinja chat template file, or 'plain' for base models; default: the tokenizer's.")
]
TokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest reply in tokens.")]
SampleOption = Annotated[bool, typer.Option("--sample", help="Sample instead of greedy decoding.")]
TemperatureOption = Annotated[float | None, typer.Option(help="Sampling temperature, above 0; with --sample.")]
TopPOption = Annotated[float | None, typer.Option(help="Nucleus sampling mass, above 0 and at most 1; with --sample.")]
HideThinkingOption = Annotated[
    bool, typer.Option("--hide-thinking", help="Leave a reasoning model's thinking out of what is shown and written.")
]
ThinkingBudgetOption = Annotated[int | None, typer.Option("--thinking-budget", min=0, help="End thinking after N tokens.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything drawn.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object about what was done.")]
OtherModelOption = Annotated[
    bool, typer.Option("--allow-other-model", help="Accept a switch that was fitted on other weights.")
]
SuiteOption = Annotated[str, typer.Option("--suite", help="nano, quick, paper or full.")]
BenchmarkOption = Annotated[
    list[str] | None, typer.Option("--benchmark", help="A benchmark in place of the suite's; repeat for more.")
]
DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of benchmark files, one <name>.jsonl each.")]
HubOption = Annotated[bool, typer.Option("--hub", help="Ask the hub for benchmarks that the folder does not hold.")]
OutOption = Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run there is gone on with.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Most requests of each benchmark, drawn at random.")]
LongestOption = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest reply in tokens; default: each benchmark's own.")
]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option("--judge", help="A further judge: openai:MODEL@URL (key: SAFESWITCH_KEY_<HOST>), llama-guard:MODEL; repeat."),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Largest number of rows decoded together.")]
FitDataOption = Annotated[
    list[str] | None, typer.Option("--fit-data", help="File or hub data set to fit methods on; none: nano's own.")
]
LeaveOutOption = Annotated[bool, typer.Option(help="Report every source with its leave-one-out figure.")]


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
            "'nano' is the embedded model, and a folder here; write ./nano for the folder, or run elsewhere for the model"
        )
    return name == "nano"
