"""``safeswitch harness``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from safeswitch.cli.load import load_engine, load_guard
from safeswitch.cli.options import BatchedModelOptions, SwitchOptions
from safeswitch.cli.screen import put
from safeswitch.core.errors import SettingError
from safeswitch.core.grammar import entries


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks are run, and where the results go."""

    panel: ClassVar[str] = "Tasks"

    tasks: Annotated[
        str,
        typer.Option("--tasks", help="Tasks of lm-evaluation-harness, joined by commas."),
    ]
    out: Annotated[Path, typer.Option("--out", help="JSON file for the results.")]
    include_path: Annotated[
        Path | None, typer.Option(help="Folder with more tasks, as YAML files.")
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Most requests of each task.")] = None
    chat_turns: Annotated[
        bool, typer.Option("--chat-turns", help="Give examples as turns, not in one text.")
    ] = False


def harness(model: BatchedModelOptions, guard: SwitchOptions, asked: TaskOptions) -> None:
    """Measure utility under a switch, through lm-evaluation-harness."""
    from safeswitch.core.artifact import write_json

    try:
        from safeswitch.bridges.lm_eval import run_tasks
    except ModuleNotFoundError as error:
        raise SettingError(
            f"safeswitch harness needs {error.name}: pip install 'safeswitch[harness]'"
        ) from error
    engine = load_engine(
        model, batch_size=model.batch_size, allow_other_model=guard.allow_other_model
    )
    results = run_tasks(
        engine,
        load_guard(guard.switch),
        entries("--tasks", asked.tasks),
        include_path=asked.include_path,
        limit=asked.limit,
        chat_turns=asked.chat_turns,
    )
    write_json(asked.out, results)
    for task, figures in results["results"].items():
        shown = [f"{name}={value}" for name, value in figures.items() if "," in name]
        put(" ".join([task, *shown]))
